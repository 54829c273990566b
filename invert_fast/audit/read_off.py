"""The cheap attack on defended states: what the lens drafts is committed, verified once, and never searched for.

Under noise that calibration was not told of, the state of no token fits, so that a search goes through all the
candidates that it has at every position, and commits the nearest, which nearly always is the draft. Here a token costs
one forward pass: where tokens fit, runs of them are verified at once, where they do not, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.protocol import Context, Run
from ..lens.choose import choose_lens
from ..strategies.candidates import Candidates
from .settings import READ_OFF


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
        lanes, device = context.lanes, context.decoder.device
        self.drafts = torch.zeros(lanes.slots, lanes.max_len, dtype=torch.long, device=device)
        self.chunk = torch.ones(lanes.slots, dtype=torch.long, device=device)

    def begin(self, slots: Tensor) -> None:
        lanes = self.context.lanes
        self.chunk[slots] = 1
        lengths = lanes.target_length[slots]
        for length in lengths.unique().tolist():
            chosen = slots[lengths == length]
            if length:
                self.drafts[chosen, :length] = self.candidates.draft(chosen, lanes.targets[chosen, :length])[0]

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
