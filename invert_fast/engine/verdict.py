"""What a position is called, and the only place where that is decided.

It follows from three numbers: the residual r of the best token, the noise ceiling n of true tokens, and how near any
other token can come (measured where it was tried, bounded by calibration where not).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.lanes import Lanes
from ..model.vocabulary import Vocabulary
from ..types import Status
from .attempts import Attempts
from .protocol import Block, Run
from .tolerances import Tolerances

_RIVALS_AT_ONCE = 32
_PLAUSIBLE_RESIDUAL, _PLAUSIBLE_RATIO = 0.5, 1.5


@dataclass(frozen=True)
class RunVerdict:
    """Of every token of a run, `[b, K]`: its status, the margin to any other token, and whether its state came nearer
    to its target than another's could (`near`); counts `[b]`: how many from the first on hold."""

    status: Tensor
    margin: Tensor
    near: Tensor
    counts: Tensor


class Judge:
    """Decides from what was tried at the lanes' positions; changes nothing."""

    def __init__(self, lanes: Lanes, attempts: Attempts, vocabulary: Vocabulary, tolerances: Tolerances):
        self.lanes, self.attempts, self.vocabulary, self.tolerances = lanes, attempts, vocabulary, tolerances

    def run(self, run: Run, residual: Tensor) -> RunVerdict:
        """Causality: what holds up to the first mismatch is certified by one pass. residual `[b, K]`."""
        ids = run.ids
        step = torch.arange(ids.shape[1], device=ids.device)
        position = self.lanes.length[run.slots][:, None] + step
        noise, tolerance, slope = self.tolerances.at(position)
        bound = slope * self.vocabulary.separation_of(ids)  # no other token comes nearer than this
        alone = bound > residual + self.tolerances.reach(residual, noise)
        single = self.vocabulary.class_size[ids] == 1
        certified = (residual <= tolerance) & alone & single
        ambiguous = (residual <= tolerance) & alone & ~single
        nearest = (residual > tolerance) & (residual < bound / 2)  # nearer than half-way to anything else
        failed = self.attempts.failed[run.slots][:, None]
        status = torch.where(nearest, int(Status.BEST_MATCH), int(Status.AFTER_FAILURE))
        status = torch.where(ambiguous, int(Status.AMBIGUOUS), status)
        status = torch.where(certified, int(Status.CERTIFIED), status)
        status = status.masked_fill(failed, int(Status.AFTER_FAILURE))
        good = (certified | ambiguous | nearest | failed) & (step < run.counts[:, None])
        counts = good.int().cumprod(-1).sum(-1)
        return RunVerdict(status, (bound - residual).clamp_min(0), residual < bound, counts)

    def settled(self, slots: Tensor) -> Tensor:
        """`[b]` bool: the answer at these lanes' positions is clear from what was tried there."""
        best, token, bound, reach, radius, tolerance = self._standing(slots)
        alone = bound > best + reach
        alone |= self._rivals_tried(slots, token, radius, ~alone)
        fits = best <= tolerance
        return (fits & alone) | (~fits & (best < bound / 2)) | self.attempts.failed[slots]

    def fits(self, slots: Tensor) -> Tensor:
        """`[b]` bool: the best token tried there is within the tolerance, though it may not be alone."""
        return self.attempts.near[slots, 0] <= self.tolerances.at(self.lanes.length[slots])[1]

    def of_best(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Status and margin `[b]` of the best token of each lane's position, from everything tried there."""
        best, token, bound, reach, radius, tolerance = self._standing(slots)
        second = self.attempts.near[slots, 1]
        everything = self.attempts.tries[slots] >= int(self.vocabulary.allowed.sum())
        alone = (bound > best + reach) | everything
        alone |= self._rivals_tried(slots, token, radius, ~alone)
        fits = best <= tolerance
        unique = fits & alone & (second > reach) & (self.vocabulary.class_size[token] == 1)
        plausible = (best < bound / 2) | ((best <= _PLAUSIBLE_RESIDUAL) & (second >= _PLAUSIBLE_RATIO * best))
        status = torch.full_like(slots, Status.NOT_FOUND)
        status[plausible & ~fits] = int(Status.BEST_MATCH)
        status[fits] = int(Status.AMBIGUOUS)
        status[unique] = int(Status.CERTIFIED)
        status[self.attempts.failed[slots]] = int(Status.AFTER_FAILURE)
        nearest_rival = torch.where(everything, second, torch.minimum(second, torch.maximum(bound, best)))
        nearest_rival = torch.where(nearest_rival.isinf(), bound, nearest_rival)
        return status, (nearest_rival - best).clamp_min(0)

    def reach(self, slots: Tensor) -> Tensor:
        """How near others must come to the targets of these lanes to be in question beside the best, `[b]`."""
        return self._standing(slots)[3]

    def rivals(self, slots: Tensor) -> Block:
        """The next alternatives that may fit as well as each lane's best, which leads the block so that it can win."""
        _, token, _, _, radius, _ = self._standing(slots)
        rivals = self.vocabulary.rivals(token, radius, self.attempts.tried[slots], _RIVALS_AT_ONCE)
        rivals = rivals[:, (rivals >= 0).any(0)]
        return Block(slots, torch.cat([token[:, None], rivals], -1))

    def _standing(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of each lane's position, `[b]`: the best residual and its token; how near any untried token can come to that
        state; the reach; the distance in the embedding within which a token may be in reach; and the tolerance."""
        best, token = self.attempts.near[slots, 0], self.attempts.near_ids[slots, 0].clamp_min(0)
        noise, tolerance, slope = self.tolerances.at(self.lanes.length[slots])
        reach = self.tolerances.reach(best, noise)
        return best, token, slope * self.vocabulary.separation_of(token), reach, (best + reach) / slope, tolerance

    def _rivals_tried(self, slots: Tensor, token: Tensor, radius: Tensor, wanted: Tensor) -> Tensor:
        """`[b]` bool: no untried token is left within the radius (only looked up where wanted, for lanes that wait)."""
        due = self.attempts.rivals_due[slots] & wanted
        tried = torch.zeros_like(due)
        if bool(due.any()):
            left = self.vocabulary.rivals(token[due], radius[due], self.attempts.tried[slots[due]], 1)
            tried[due] = (left < 0).all(-1)
        return tried
