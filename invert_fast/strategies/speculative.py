"""Draft the whole text from its states, verify it in one pass, repair the first mismatch, go on from there.

What no published system does: a lens reads a draft off H without any forward pass, and causality lets one
teacher-forced pass certify everything before the first mismatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..lens import LinearLens, load_or_fit
from ..model import Decoder
from .base import Block, Context, Run, growing_blocks
from .prior import NextTokenPrior

_lenses: WeakKeyDictionary[Decoder, dict[int, LinearLens]] = WeakKeyDictionary()  # read once a process


@dataclass(frozen=True)
class Speculative:
    """first_block, growth, max_block: sizes of the repair blocks of a position, each `growth` times the one before;
    max_candidates: leave a position to the next strategy after that many (None: try all);
    min_run: shortest chunk of a draft that is verified at once; seed: of the lens, fitted on first use.
    """

    first_block: int = 4
    growth: int = 4
    max_block: int = 1024
    max_candidates: int | None = 512
    min_run: int = 8
    seed: int = 0
    name: str = "speculative"

    def bind(self, context: Context) -> _Proposer:
        kept = _lenses.setdefault(context.decoder, {})
        if self.seed not in kept:
            kept[self.seed] = load_or_fit(context.decoder, context.vocabulary, self.seed)
        return _Proposer(self, context, kept[self.seed])


class _Proposer:
    """The drafts of all lanes, and how long a chunk of them is worth verifying at once."""

    def __init__(self, settings: Speculative, context: Context, lens: LinearLens):
        self.settings, self.context, self.lens = settings, context, lens
        self.prior = NextTokenPrior(context) if context.decoder.layer.near_head else None
        lanes = context.lanes
        self.drafts = torch.zeros(lanes.slots, lanes.max_len, dtype=torch.long, device=context.decoder.device)
        # drafted tokens that were right and wrong so far, starting from what the fit measured
        self.right, self.wrong = 64 * lens.accuracy, 64 * (1 - lens.accuracy)
        self.seen = torch.zeros_like(lanes.length)

    def begin(self, slots: Tensor) -> None:
        self.seen[slots] = 0
        longest = int(self.context.lanes.target_length[slots].max())
        if longest:
            self.drafts[slots, :longest] = self.lens.draft(self.context.lanes.targets[slots, :longest])

    def propose(self, slots: Tensor) -> list[Run | Block]:
        tries = self.context.attempts.tries[slots]
        self._learn(slots)
        items: list[Run | Block] = []
        fresh = slots[tries == 0]
        if len(fresh):
            items += self._runs(fresh)
        stuck = slots[tries > 0]
        if self.settings.max_candidates is not None:
            stuck = stuck[self.context.attempts.tries[stuck] < self.settings.max_candidates]
        if len(stuck):
            settings = self.settings
            items += growing_blocks(
                self.context, stuck, self._scores(stuck), settings.first_block, settings.growth, settings.max_block
            )
        return items

    def _runs(self, slots: Tensor) -> list[Run | Block]:
        """A chunk of each lane's draft from its position on: as long as it is likely to hold, lanes of like length
        together, so that short texts do not pay for long ones."""
        lanes = self.context.lanes
        left = lanes.target_length[slots] - lanes.length[slots]
        worth = max(self.settings.min_run, round((self.right + self.wrong) / max(self.wrong, 1e-3)))
        counts = torch.where(left <= 1.5 * worth, left, torch.full_like(left, worth))
        items: list[Run | Block] = []
        order = counts.argsort(descending=True)
        slots, counts = slots[order], counts[order]
        while len(slots):
            longest = int(counts[0])
            same = counts >= 0.75 * longest if longest > 8 else torch.ones_like(counts, dtype=torch.bool)
            chosen, length = slots[same], counts[same]
            columns = lanes.length[chosen][:, None] + torch.arange(longest, device=slots.device)
            items.append(Run(chosen, self.drafts[chosen[:, None], columns.clamp_max(lanes.max_len - 1)], length))
            slots, counts = slots[~same], counts[~same]
        return items

    def _learn(self, slots: Tensor) -> None:
        """Count the tokens committed since the last look as right, and each lane that now stands at a failed draft."""
        length = self.context.lanes.length[slots]
        self.right += float((length - self.seen[slots]).sum())
        self.wrong += float((self.context.attempts.tries[slots] == 1).sum())
        self.seen[slots] = length

    def _scores(self, slots: Tensor) -> Tensor:
        """Posterior order: the change lens against the nearest token verified so far, plus the model's own prior."""
        lanes, attempts = self.context.lanes, self.context.attempts
        scores = self.lens.change_scores(lanes.target(slots), attempts.near_state[slots], attempts.near_ids[slots, 0])
        if self.prior is not None:
            scores = scores + self.prior.scores(slots)
        return scores
