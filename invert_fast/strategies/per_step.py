"""SIPIT (2510.15511): step, project to the nearest untried token, verify, ban it if wrong, and step on.

Our form of it: the committed prefix is kept as KV, all lanes share a pass, a search begins at the mean row under the
model's next-token prior, the longer a lane searches the more tokens it tries a step, and one whose budget is spent goes
on through the rest of the vocabulary in the order of distance, never committing unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .. import ops
from ..engine.protocol import Block, Context, Run, Working
from ..model.cuda_graph import Rows
from ..model.embedding import BLOCK
from ..model.transfer import picked, told_one
from .proxies import Proxies, graphed_steps

_EAGER = (2.0, 1.5)  # far from the minimum a Polyak step may be longer: 36 % → 54 % and 81 % → 86 % at rank 0
_SINGULAR = 0.01  # a first step shorter than this share of a row leads nowhere
_PATIENCE = 3  # projections between two growths of the block


@dataclass(frozen=True)
class PerStepProjection:
    """optimiser: polyak (steps of `lr` times ℒ/‖∇ℒ‖², at home at any scale) | sgd | adam, at a constant rate `lr`;
    clip: gradient norm of a lane for the last two; ℒ = ‖f(e) − h‖²; metric: l1 | l2 | cosine | dot, in which a
    proxy is projected; project_from: the first step after which it is (None: 1 from `prior`, else 2),
    project_every: and after each so many more; candidates_per_step: nearest untried tokens verified then, and
    `growth` times as many after every three projections in vain, up to `largest_block`; snap_every: the proxy jumps
    to its nearest row after that many steps (× 1 + ⌊V / 25,000⌋ at the first position); max_steps: steps of a
    position before the rest of V is tried in the order of distance, rest_block at once (None: give up instead);
    init: zeros | token | gaussian | prior (the mean row under the model's next-token prior); None: prior where the
    layer gives it for nothing, else zeros. polyak leaves a start where the model is singular, as an RMSNorm is at
    zero, for the row of a random token. seed: of random starts; cuda_graph, search_dtype: as in `Continuous`.
    """

    optimiser: str = "polyak"
    lr: float = 2.0
    clip: float | None = 1.0
    metric: str = "cosine"
    project_from: int | None = None
    candidates_per_step: int = 1
    growth: int = 4
    largest_block: int = 64
    snap_every: int = 50
    max_steps: int = 200
    rest_block: int | None = 256
    init: str | None = None
    seed: int = 42
    cuda_graph: bool | None = None
    search_dtype: str | None = None
    project_every: int = 1
    name: str = "sipit"

    @classmethod
    def official(cls) -> PerStepProjection:
        """The released settings: SGD with steps of length 1 from the row of a random token, one candidate a step."""
        return cls(optimiser="sgd", lr=1.0, metric="l2", init="token", project_from=1, growth=1)

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        if self.optimiser not in ("polyak", "sgd", "adam"):
            raise ValueError(f"optimiser '{self.optimiser}' is unknown, expected polyak, sgd or adam")
        if self.project_every < 1:
            raise ValueError(f"project_every {self.project_every}, expected 1 or more")
        return _Proposer(self, context)


class _Proposer:
    def __init__(self, settings: PerStepProjection, context: Context):
        self.settings, self.context = settings, context
        init = settings.init or ("prior" if context.decoder.layer.near_head else "zeros")
        self.project_from = min(settings.project_from or (1 if init == "prior" else 2), settings.max_steps)
        self.proxies = Proxies(context, init, settings.seed, settings.search_dtype)
        self.graphed = graphed_steps(context, self.proxies, settings, self._move_rows)

    @cached_property
    def row_length(self) -> Tensor:
        """Mean length of a candidate's row; made when needed, since this may only stand by for another strategy."""
        parts = self.proxies.candidates.split(BLOCK)
        return torch.cat([self.proxies.embedding[part].norm(dim=-1) for part in parts]).mean()

    def begin(self, slots: Tensor) -> None:
        self.proxies.begin(slots)

    def propose(self, slots: Tensor) -> list[Run | Block | Working]:
        s, p = self.settings, self.proxies
        p.start_new(slots)
        steps = p.steps(slots)
        searching = steps < s.max_steps
        items: list[Run | Block | Working] = []
        if bool(searching.any()):
            value = self._advance(slots[searching], steps[searching])
            items += self._project(slots[searching], value, steps[searching] + 1)
        rest = slots[~searching]
        if len(rest) and s.rest_block is not None:
            items += self._nearest(rest, p.value[p.at(rest)], s.rest_block)
        return items

    def _project(self, slots: Tensor, value: Tensor, steps: Tensor) -> list[Run | Block | Working]:
        """What to verify after so many steps `[b]`: lanes that try equally many tokens share a block, so that none is
        padded."""
        s, steps = self.settings, steps - self.project_from
        due = (steps >= 0) & (steps % s.project_every == 0)
        items: list[Run | Block | Working] = []
        if not bool(due.all()):
            items.append(Working(slots[~due]))
            slots, value, steps = slots[due], picked(value, due.nonzero().flatten()), steps[due]
        if not len(slots):
            return items
        times = steps // s.project_every  # projections before this one
        for grown in range(int(times.max()) // _PATIENCE + 1):
            count = s.candidates_per_step * s.growth**grown
            last = s.growth <= 1 or count >= s.largest_block
            group = (times >= grown * _PATIENCE) & (last | (times < (grown + 1) * _PATIENCE))
            if bool(group.any()):
                rows, most = group.nonzero().flatten(), max(s.largest_block, s.candidates_per_step)
                items += self._nearest(slots[rows], picked(value, rows), min(count, most))
            if last:
                break
        return items

    def _advance(self, slots: Tensor, steps: Tensor) -> Tensor:
        """One step of these lanes' proxies after so many `[b]`; returns where they stand then, `[b, D_e]`."""
        p, at = self.proxies, self.proxies.at(slots)
        before = p.value[at]
        self._snap(slots, before, steps)
        if self.graphed is not None:
            p.value[at] = before
            self.graphed.run(slots, p.tables, 1)
            value = p.value[at]
        else:
            loss, grad = p.gradient(slots, before, p.hold(slots, once=True))
            if self.settings.optimiser == "adam":
                exp_avg, exp_avg_sq, step = p.exp_avg[at], p.exp_avg_sq[at], p.step[at]
                value = before.clone()
                self._adam(value, grad, exp_avg, exp_avg_sq, step, torch.ones_like(step, dtype=torch.bool))
                p.exp_avg[at], p.exp_avg_sq[at] = exp_avg, exp_avg_sq
            else:
                value = before - self._change(loss, grad, p.step[at])
            p.step[at] += 1
        if self.settings.optimiser == "polyak" and bool((steps == 0).any()):
            nowhere = (steps == 0) & told_one((value - before).norm(dim=-1) < _SINGULAR * self.row_length)
            if bool(nowhere.any()):
                value[p.at(nowhere.nonzero().flatten())] = p.random_rows(slots[nowhere])
        p.value[at] = value
        self.context.charge(slots, steps=1)
        return value

    def _move_rows(self, rows: Rows, loss: Tensor, grad: Tensor) -> None:
        """The same step, of `GraphedSteps`."""
        if self.settings.optimiser == "adam":
            self._adam(rows.value, grad, rows.exp_avg, rows.exp_avg_sq, rows.step, rows.moving)
        else:
            moved = rows.value - self._change(loss, grad, rows.step)
            rows.value.copy_(torch.where(rows.moving[:, None], moved, rows.value))
            rows.step.add_(rows.moving)

    def _change(self, loss: Tensor, grad: Tensor, step: Tensor) -> Tensor:
        """What to take off the proxies, from MSE `[b]` and gradient `[b, D_e]` after `step [b]` steps; may overwrite
        the gradient."""
        s, width = self.settings, self.context.decoder.width
        grad *= width  # of the sum of squares instead of their mean: that is what is clipped
        if s.optimiser == "polyak":
            rate = torch.where(step == 0, _EAGER[0] * s.lr, torch.where(step == 1, _EAGER[1] * s.lr, s.lr))[:, None]
            return rate * (loss[:, None] * width / grad.square().sum(-1, keepdim=True).clamp_min(1e-30)) * grad
        if s.clip is not None:
            grad *= (s.clip / (grad.norm(dim=-1, keepdim=True) + 1e-6)).clamp_max(1.0)
        return s.lr * grad

    def _adam(self, value: Tensor, grad: Tensor, *state: Tensor) -> None:
        s = self.settings
        grad *= self.context.decoder.width
        ops.adam_step(value, grad, *state, lr=s.lr, total_steps=10**12, clip=s.clip)

    def _snap(self, slots: Tensor, value: Tensor, steps: Tensor) -> None:
        """Put proxies that are due onto their nearest row."""
        p, lanes = self.proxies, self.context.lanes
        every = self.settings.snap_every * torch.where(
            lanes.length[slots] == 0, 1 + self.context.vocabulary.size // 25_000, 1
        )
        due = ((steps > 0) & (steps % every == 0)).nonzero().flatten()
        if len(due):
            due = p.at(due)
            _, ids = p.embedding.nearest(value[due], 1, self.settings.metric)
            value[due] = p.embedding[ids[:, 0]]

    def _nearest(self, slots: Tensor, value: Tensor, count: int) -> list[Block]:
        """The nearest tokens to these proxies that were not tried before; lanes without any are left out."""
        context = self.context
        banned = context.attempts.tried_there[self.proxies.at(slots)] | ~context.vocabulary.allowed
        count = min(count, context.vocabulary.size)
        ids = told_one(self.proxies.embedding.nearest(value, count, self.settings.metric, banned)[1])
        some = ids[:, 0] >= 0
        ids = ids[some]
        return [Block(slots[some], ids[:, (ids >= 0).any(0)])] if len(ids) else []
