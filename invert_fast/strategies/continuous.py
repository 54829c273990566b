"""Algorithm 1 of 2607.00852: optimise a proxy in embedding space, never project on the way, commit a token once.

Slower than every other strategy here, and the one that can be watched: loss curves, rank trajectories, and a discrete
loss that says without any reference where a recovery went wrong (§4.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..engine.protocol import Block, Context, Run, Working
from ..engine.trace import PositionTrace
from ..model.cuda_graph import Rows
from ..model.transfer import told
from .blocks import growing_blocks
from .proxies import Proxies, graphed_steps

_NEVER = 1 << 40  # steps over which a rate that falls to 0 does not fall


@dataclass(frozen=True)
class Continuous:
    """The paper's Baseline operating point (Table 1); `fast()` and `high_accuracy()` are the others.

    steps: budget K of a position; candidates: C nearest rows that are verified once it is spent (at most V);
    lr: α₀ of Adam, annealed to 0 on a cosine over K, or (anneal=False, the paper's plain Adam) left as it is;
    weight_decay: L2, added to the gradient; clip: gradient norm of a lane, None for any; loss_threshold: MSE below
    which a lane stops early; init: zeros | token | gaussian; metric: l1 | l2 | cosine | dot, in whose order candidates
    are tried; first_block, growth, max_block: how many are verified at once; round: steps between two looks at the
    lanes that are done; seed: of random starts; trace: keep loss curves, and proxies every `trace_stride` steps;
    cuda_graph: a step is one graph (None: on CUDA, unless traced), see `model.cuda_graph`;
    search_dtype: precision of the search, float32 | tf32 (on CUDA) | bfloat16 (None: the model's; verification always
    is in the model's).
    """

    steps: int = 1000
    candidates: int = 2000
    lr: float = 0.05
    weight_decay: float = 1e-5
    clip: float | None = 1.0
    loss_threshold: float = 1e-4
    init: str = "zeros"
    metric: str = "l1"
    first_block: int = 1
    growth: int = 8
    max_block: int = 1024
    round: int = 16
    seed: int = 42
    trace: bool = False
    trace_stride: int = 10
    cuda_graph: bool | None = None
    search_dtype: str | None = None
    name: str = "continuous"
    anneal: bool = True

    @classmethod
    def fast(cls, **changes: Any) -> Continuous:
        """K = 600, C = 100."""
        return replace(cls(600, 100), **changes)

    @classmethod
    def baseline(cls, **changes: Any) -> Continuous:
        """K = 1000, C = 2000."""
        return replace(cls(1000, 2000), **changes)

    @classmethod
    def high_accuracy(cls, **changes: Any) -> Continuous:
        """K = 2000, C = 10,000."""
        return replace(cls(2000, 10_000), **changes)

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        return _Proposer(self, context)


PRESETS = {"fast": Continuous.fast, "baseline": Continuous.baseline, "high-accuracy": Continuous.high_accuracy}


class _Proposer:
    """searching `[S]` bool: lanes whose proxy still moves; order `[S, V]`, beside the model: −distance of the C nearest
    rows of the others, −inf elsewhere."""

    def __init__(self, settings: Continuous, context: Context):
        self.settings, self.context = settings, context
        self.proxies = Proxies(context, settings.init, settings.seed, settings.search_dtype)
        slots = context.lanes.slots
        self.searching = torch.zeros(slots, dtype=torch.bool)
        self.order = torch.full((slots, context.vocabulary.size), float("-inf"), device=context.decoder.device)
        self.graphed = graphed_steps(context, self.proxies, settings, self._advance)
        if settings.trace:
            self.losses = torch.zeros(slots, settings.steps, device=context.decoder.device)
            self.history: list[list[Tensor]] = [[] for _ in range(slots)]

    def begin(self, slots: Tensor) -> None:
        self.proxies.begin(slots)

    def propose(self, slots: Tensor) -> list[Run | Block | Working]:
        fresh = self.proxies.start_new(slots)
        if self.settings.trace:
            for slot in fresh.tolist():
                self.history[slot] = []
        self.searching[fresh] = self.settings.steps > 0
        searching = slots[self.searching[slots]]
        if len(searching):
            self._optimise(searching)
        elif len(fresh):
            self._rank(fresh)
        working = self.searching[slots]
        items: list[Run | Block | Working] = [Working(slots[working])] if bool(working.any()) else []
        done = slots[~working]
        if len(done):
            s = self.settings
            order = self.order[self.proxies.at(done)]
            items += growing_blocks(self.context, done, order, s.first_block, s.growth, s.max_block)
        return items

    def _optimise(self, slots: Tensor) -> None:
        """Up to `round` steps of these lanes; fewer when an eighth of them is done, so that those need not wait."""
        s, p, at = self.settings, self.proxies, self.proxies.at(slots)
        enough = len(slots) - max(1, len(slots) // 8)
        if self.graphed is not None:
            before = p.step[at]
            self._finish(slots, self.graphed.run(slots, p.tables, s.round, enough), before)
            return
        value, exp_avg, exp_avg_sq, step = (t[at] for t in p.tables)
        before, held = step.clone(), p.hold(slots)
        moving = torch.ones_like(step, dtype=torch.bool)
        for _ in range(s.round):
            if s.trace:
                self._watch(at[moving], value[moving], step[moving])
            loss, grad = p.gradient(slots, value, held)
            if s.trace:
                self.losses[at[moving], step[moving]] = loss[moving]
            self._adam(value, grad, exp_avg, exp_avg_sq, step, moving)
            moving = moving & (loss >= s.loss_threshold) & (step < s.steps)
            if int(moving.sum()) <= enough:
                break
        p.value[at], p.exp_avg[at], p.exp_avg_sq[at], p.step[at] = value, exp_avg, exp_avg_sq, step
        self._finish(slots, moving, before)

    def _adam(self, *tables: Tensor) -> None:
        s = self.settings
        total = s.steps if s.anneal else _NEVER
        ops.adam_step(*tables, lr=s.lr, total_steps=total, clip=s.clip, weight_decay=s.weight_decay)

    def _advance(self, rows: Rows, loss: Tensor, grad: Tensor) -> None:
        """The same step, of `GraphedSteps`."""
        self._adam(rows.value, grad, rows.exp_avg, rows.exp_avg_sq, rows.step, rows.moving)
        rows.moving.logical_and_((loss >= self.settings.loss_threshold) & (rows.step < self.settings.steps))

    def _finish(self, slots: Tensor, moving: Tensor, before: Tensor) -> None:
        taken, moving = told(self.proxies.step[self.proxies.at(slots)] - before, moving)
        self.context.charge(slots, steps=taken)
        self.searching[slots] = moving
        if not bool(moving.all()):
            self._rank(slots[~moving])

    def _rank(self, slots: Tensor) -> None:
        """The one discrete search of a position: the C nearest rows to the proxy that may be candidates."""
        context, at = self.context, self.proxies.at(slots)
        value, banned = self.proxies.value[at], context.attempts.tried_there[at] | ~context.vocabulary.allowed
        count = min(self.settings.candidates, context.vocabulary.size)
        distance, ids = self.proxies.embedding.nearest(value, count, self.settings.metric, banned)
        order = torch.full_like(self.order[at], float("-inf"))
        # amax: ids of −1 (nothing left) have distance +inf and must not overwrite token 0
        self.order[at] = order.scatter_reduce(1, ids.clamp_min(0), -distance, "amax")
        if self.settings.trace:
            self._leave(slots)

    def _watch(self, slots: Tensor, value: Tensor, step: Tensor) -> None:
        for slot, proxy, k in zip(slots.tolist(), value, step.tolist(), strict=True):
            if k % self.settings.trace_stride == 0:
                self.history[slot].append(proxy.cpu())

    def _leave(self, slots: Tensor) -> None:
        """Hand over what was seen of these lanes' positions."""
        lanes, p, stride = self.context.lanes, self.proxies, self.settings.trace_stride
        for slot, position, steps in zip(
            slots.tolist(), lanes.length[slots].tolist(), p.steps(slots).tolist(), strict=True
        ):
            kept = self.history[slot]
            self.context.traces.add(
                slot,
                position,
                PositionTrace(
                    self.losses[slot, :steps].cpu().numpy().copy(),
                    torch.stack([*kept, p.value[slot].cpu()]).numpy(),
                    np.array([*range(0, stride * len(kept), stride), steps]),
                    self.settings.metric,
                ),
            )
