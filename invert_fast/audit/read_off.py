"""The cheap attack on defended states: what the lens drafts is committed, verified once, and never searched for.

Under noise that calibration was not told of, the state of no token fits, so that a search goes through all the
candidates that it has at every position, and commits the nearest, which nearly always is the draft. Here a token costs
one forward pass of all texts at once. Only texts with a token that fits are given to the engine, which alone certifies,
and commits the same drafts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..engine.protocol import Context, Run
from ..inverter import Inverter
from ..lens.base import Lens
from ..lens.choose import choose_lens
from ..lens.prior import draft_lists
from ..lens.second_look import doubtful, look_again
from ..model.decoder import Decoder
from ..model.transfer import sent_one, told
from ..ops.best_two import MANY_TOKENS
from ..strategies.candidates import Candidates
from ..types import Cost, Recovery, States, Status, coarsest
from .settings import READ_OFF

_AT_ONCE = 4096  # tokens of a pass
_CLOSE = 2.0  # tolerances: passes that are cut otherwise differ by rounding, and nothing near the edge is left out


@torch.no_grad()
def read_off(inverter: Inverter, batch: Sequence[States]) -> list[Recovery]:
    """What `ReadOff` recovers of some texts. A text in which no draft comes near to fitting, in its own context, has no
    token that the engine could certify behind the same drafts: it is not asked."""
    decoder, vocabulary = inverter.decoder, inverter.vocabulary
    stored, computed = coarsest(batch)
    tolerances = inverter.calibrate(stored, computed)
    lens = choose_lens(decoder, vocabulary, "auto", stored)
    found: dict[int, Recovery] = {}
    for length in sorted({len(states) for states in batch}):
        every = [i for i, states in enumerate(batch) if len(states) == length]
        if not length:
            continue
        for start in range(0, len(every), max(1, _AT_ONCE // length)):
            begun, which = time.perf_counter(), every[start : start + max(1, _AT_ONCE // length)]
            hidden = torch.stack([batch[i].hidden.float() for i in which]).to(decoder.device)
            ids = drafted(decoder, lens, hidden)
            position = torch.arange(length).expand(ids.shape)
            plain, residual = tolerances.row_residuals(decoder.states(ids).float(), hidden, position)
            loss, at = plain.square() * hidden.square().mean(-1), tolerances.at(position)
            ids, plain, residual, loss = told(ids, plain, residual, loss)
            close = (residual <= _CLOSE * at.tolerance).any(-1)
            near = residual < at.bound(vocabulary.separation_of(ids), at.typical) / 2
            taken = (time.perf_counter() - begun) / len(which)
            for row, i in enumerate(which):
                made = _unverified(decoder, ids[row], plain[row], loss[row], near[row], taken)
                found[i] = made if not close[row] else replace(made, status=np.full(length, -1))
    asked = [i for i in range(len(batch)) if i not in found or (found[i].status < 0).any()]
    options = {"states_dtype": stored, "compute_dtype": computed}
    again = inverter.invert([batch[i] for i in asked], ReadOff(), **options) if asked else []
    for i, recovery in zip(asked, again, strict=True):
        cost, before = recovery.cost, found[i].cost if i in found else Cost()
        both = replace(
            cost, forward_tokens=cost.forward_tokens + before.forward_tokens, seconds=cost.seconds + before.seconds
        )
        found[i] = replace(recovery, cost=both)
    return [found[i] for i in range(len(batch))]


def drafted(decoder: Decoder, lens: Lens, hidden: Tensor) -> Tensor:
    """The tokens `[b, T]` that the lens makes of texts `[b, T, D]`: as strategies that draft begin with."""
    if len(decoder.embedding) >= MANY_TOKENS:
        return draft_lists(decoder, lens, hidden).ids[..., 0]
    proxies = lens.proxies(hidden)
    drafts, leads = lens.best(proxies)
    if decoder.layer.near_head and lens.repair.second_look > 0:
        rows = doubtful(lens.repair.error(leads))
        drafts[rows] = look_again(decoder, lens, hidden, proxies, *rows)[0]
    return drafts


def _unverified(
    decoder: Decoder, ids: Tensor, residual: Tensor, loss: Tensor, near: Tensor, seconds: float
) -> Recovery:
    """A text none of whose tokens fits: nearer than half-way to any other token is a best match, as the engine has it,
    and behind the first that is not everything is a guess."""
    failed = (~near).cumsum(-1)
    status = torch.where(near, int(Status.BEST_MATCH), int(Status.NOT_FOUND))
    status[(failed > 1) | ((failed == 1) & near)] = int(Status.AFTER_FAILURE)
    count, none = len(ids), np.zeros(len(ids))
    return Recovery(
        ids.numpy(),
        residual.numpy(),
        loss.numpy(),
        none,
        status.numpy(),
        none.astype(int),
        none.astype(int),
        decoder.decode(ids.tolist()),
        cost=Cost(forward_tokens=count, seconds=seconds, draft=count),
    )


@dataclass(frozen=True)
class ReadOff:
    """lens, seed: as in `Speculative`."""

    lens: str = "auto"
    seed: int = 0
    name: str = READ_OFF

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        lens = choose_lens(context.decoder, context.vocabulary, self.lens, context.states_dtype, self.seed)
        return _Proposer(context, Candidates(context, lens))


class _Proposer:
    def __init__(self, context: Context, candidates: Candidates):
        self.context, self.candidates = context, candidates
        lanes = context.lanes
        self.drafts = torch.zeros(lanes.slots, lanes.max_len, dtype=torch.long)
        self.chunk = torch.ones(lanes.slots, dtype=torch.long)

    def begin(self, slots: Tensor) -> None:
        lanes = self.context.lanes
        self.chunk[slots] = 1
        lengths = lanes.target_length[slots]
        for length in lengths.unique().tolist():
            chosen = slots[lengths == length]
            if length:
                hidden = lanes.targets[sent_one(lanes.device, chosen), :length]
                self.drafts[chosen, :length] = self.candidates.draft(chosen, hidden)[0]

    def propose(self, slots: Tensor) -> list[Run]:
        lanes, failed = self.context.lanes, self.context.attempts.tries[slots] > 0
        self.chunk[slots[failed]] = 1  # these are in no run: the engine commits what was nearest
        going = slots[~failed]
        left, counts = (lanes.target_length - lanes.length)[going], self.chunk[going]
        self.chunk[going] = 2 * counts
        runs = []
        for count in counts.unique().tolist():
            chosen, most = going[counts == count], left[counts == count]
            step = torch.arange(min(count, int(most.max())), device=slots.device)
            columns = (lanes.length[chosen][:, None] + step).clamp_max(lanes.max_len - 1)
            runs.append(Run(chosen, self.drafts[chosen[:, None], columns], most.clamp_max(len(step))))
        return runs
