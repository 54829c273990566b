"""What a position is called, and the only place where that is decided.

It follows from three numbers: the residual r of the best token, the noise ceiling n of true tokens, and how near any
other token can come (measured where it was tried, bounded by calibration where not).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.lanes import Lanes
from ..model.neighbours import NEAREST
from ..model.transfer import sent, told_one
from ..model.vocabulary import RIVALS_MOST, Vocabulary
from ..types import Status
from .attempts import Attempts
from .noisy import NoisyAt
from .protocol import Behind, Block, Run
from .tolerances import At, Tolerances

_RIVALS_AT_ONCE = (4, 32)  # nearest first: the first few mostly settle it
_RIVALS_IN_ALL = 2 * RIVALS_MOST  # of a position, whichever tokens led in turn
_BEFORE_LOUD, _AS_LOUD = 16, 4  # tokens that are tried before one that fits loudly is believed; by what power more
_LOUDER = 4.0  # times the loudest noise: what a strategy stands by is named its best match up to there
_BEFORE_NEAREST = 64  # tokens that are tried before one is a best match that is louder than its text was so far
_PLAUSIBLE_RESIDUAL, _PLAUSIBLE_RATIO = 0.5, 1.5


@dataclass(frozen=True)
class RunVerdict:
    """Of every token of a run, `[b, K]`: its status, the margin to any other token, whether its state came nearer to
    its target than another's could (`near`), how likely noise made it another's (`error`), whether that is yet to be
    seen, from its rivals (`open`), and its residual over the tolerance (`loudness`); counts `[b]`: how many from the
    first on hold."""

    status: Tensor
    margin: Tensor
    near: Tensor
    counts: Tensor
    error: Tensor
    open: Tensor
    loudness: Tensor


class Judge:
    """Decides from what was tried at the lanes' positions, on the host; changes nothing."""

    def __init__(self, lanes: Lanes, attempts: Attempts, vocabulary: Vocabulary, tolerances: Tolerances):
        self.lanes, self.attempts, self.vocabulary, self.tolerances = lanes, attempts, vocabulary, tolerances
        self.candidates = vocabulary.candidates
        self.z = tolerances.deviations(self.candidates)

    def run(self, run: Run, residual: Tensor) -> RunVerdict:
        """Causality: what holds up to the first mismatch is certified by one pass. residual `[b, K]`, in the metric of
        the noise."""
        ids = run.ids
        step = torch.arange(ids.shape[1])
        position = self.lanes.length[run.slots][:, None] + step
        at = self.tolerances.at(position)
        tolerance = at.tolerance
        separation = self.vocabulary.separation_of(ids)
        bound = at.bound(separation, residual)  # no other token comes nearer than this
        alone = bound > at.required(residual, self.z)
        single = self.vocabulary.class_size[ids] == 1
        fits = residual <= tolerance
        open_ones = fits & ~alone & single & (at.loudness(residual) <= 1)
        ambiguous = fits & alone & ~single
        if isinstance(at, NoisyAt):  # behind what cannot be certified nothing can, and none of it is worth a rival
            open_ones &= ~at.hopeless(separation, residual, self.z)
            open_ones &= ~self._too_many(ids, position, residual, open_ones)
            open_ones &= (fits & (alone | open_ones) & single).int().cumprod(-1).bool()
            ambiguous = fits & ~(alone & single) & ~open_ones
        certified = fits & (alone | open_ones) & single
        loudness = residual / tolerance
        before = F.pad(loudness, (1, 0))[:, :-1].cummax(-1).values
        usual = torch.maximum(before, self.attempts.loudest[run.slots][:, None])
        nearest = ~fits & (residual < at.bound(separation, at.typical) / 2)  # nearer than half-way to anything else
        nearest &= (position == 0) | (loudness <= _LOUDER * usual.clamp_min(1))
        nearest |= ~fits & run.final & (residual <= _LOUDER * tolerance)
        missing = ~fits & ~nearest & run.final
        failed = self.attempts.failed[run.slots][:, None]
        status = torch.where(nearest, int(Status.BEST_MATCH), int(Status.AFTER_FAILURE))
        status = torch.where(ambiguous, int(Status.AMBIGUOUS), status)
        status = torch.where(certified, int(Status.CERTIFIED), status)
        status = status.masked_fill(missing, int(Status.NOT_FOUND))
        failed = failed | ((missing.cumsum(-1) - missing.long()) > 0)
        status = status.masked_fill(failed, int(Status.AFTER_FAILURE))
        good = (certified | ambiguous | nearest | missing | failed) & (step < run.counts[:, None])
        counts = good.int().cumprod(-1).sum(-1)
        error = at.error(residual, bound, torch.full_like(residual, torch.inf), self.candidates)
        margin, open_ones = (bound - residual).clamp_min(0), open_ones & ~failed
        return RunVerdict(status, margin, residual < bound, counts, error, open_ones, loudness)

    def _too_many(self, ids: Tensor, position: Tensor, residual: Tensor, among: Tensor) -> Tensor:
        """`[b, K]` bool: which of the tokens `among` others usually have more rivals in loud noise than are tried."""
        found = torch.zeros_like(among)
        at = self.tolerances.at(position[among])
        if bool(among.any()) and isinstance(at, NoisyAt):
            radius = at.usual_radius(residual[among], self.z)
            found[among] = self.vocabulary.rivals_within(ids[among], radius, NEAREST, NEAREST)[1]
        return found

    def settled(self, slots: Tensor) -> Tensor:
        """`[b]` bool: the answer at these lanes' positions is clear from what was tried there."""
        best, token, bound, at = self._standing(slots)
        alone = bound > at.required(best, self.z)
        tried, given_up = self._rivals_tried(slots, token, best, at, ~alone)
        fits = best <= at.tolerance
        known = self.loudness(slots) <= _LOUDER * self.attempts.loudest[slots].clamp_min(1)
        known |= (self.attempts.tries[slots] >= _BEFORE_NEAREST) | (self.lanes.length[slots] == 0)
        nearest = ~fits & (best < self._half_way(token, at)) & known
        return (fits & (alone | tried | given_up)) | nearest | self.attempts.failed[slots]

    def loudness(self, slots: Tensor) -> Tensor:
        """Residual of the best token tried at these lanes' positions, over the tolerance there, `[b]`."""
        return self.attempts.near[slots, 0] / self.tolerances.at(self.lanes.length[slots]).tolerance

    def believable(self, slots: Tensor) -> Tensor:
        """`[b]` bool: the best token tried there is within the tolerance, though it may not be alone. The ceiling of
        coarse states' noise lies above many wrong tokens' residuals: the louder the noise would have to be, the more
        tokens must have been tried, as long as there are more to try."""
        best, at = self.attempts.near[slots, 0], self.tolerances.at(self.lanes.length[slots])
        loudness = at.loudness(best)
        others = _BEFORE_LOUD * loudness.pow(_AS_LOUD)
        enough = (self.attempts.tries[slots] >= others) | self.attempts.nothing_left[slots]
        return (best <= at.tolerance) & ((loudness <= 1) | enough)

    def of_best(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Status, margin and error `[b]` of the best token of each lane's position, from everything tried there."""
        best, token, bound, at = self._standing(slots)
        second, required = self.attempts.near[slots, 1], at.required(best, self.z)
        everything = self.attempts.tries[slots] >= self.candidates
        alone = (bound > required) | everything
        tried, _ = self._rivals_tried(slots, token, best, at, ~alone)
        fits = best <= at.tolerance
        unique = fits & (alone | tried) & (second > at.reach(best, self.z)) & (self.vocabulary.class_size[token] == 1)
        untried = torch.where(tried, torch.maximum(bound, required), bound)
        untried = untried.masked_fill(everything, torch.inf)
        plausible = (best < self._half_way(token, at)) | (
            (best <= _PLAUSIBLE_RESIDUAL) & (second >= _PLAUSIBLE_RATIO * best)
        )
        status = torch.full_like(slots, Status.NOT_FOUND)
        status[plausible & ~fits] = int(Status.BEST_MATCH)
        status[fits] = int(Status.AMBIGUOUS)
        status[unique] = int(Status.CERTIFIED)
        status[self.attempts.failed[slots]] = int(Status.AFTER_FAILURE)
        nearest_rival = torch.where(everything, second, torch.minimum(second, torch.maximum(bound, best)))
        nearest_rival = torch.where(nearest_rival.isinf(), bound, nearest_rival)
        error = at.error(best.nan_to_num(), untried, second, self.candidates)
        return status, (nearest_rival - best).clamp_min(0), error

    def confirmed(
        self, positions: Tensor, residual: Tensor, second: Tensor, unclear: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Status, margin and error `[n]` of tokens that fit at these positions and whose rivals were tried, the nearest
        of which came to `second [n]`; unclear `[n]` bool: which are not alone."""
        at = self.tolerances.at(positions)
        required = at.required(residual, self.z)
        margin = (torch.minimum(second, required) - residual).clamp_min(0)
        status = torch.where(unclear, int(Status.AMBIGUOUS), int(Status.CERTIFIED))
        return status, margin, at.error(residual, required, second, self.candidates)

    def reach(self, slots: Tensor) -> Tensor:
        """How near others must come to the targets of these lanes to be in question beside the best, `[b]`."""
        best, _, _, at = self._standing(slots)
        return at.reach(best, self.z)

    def rivals(self, slots: Tensor) -> Block:
        """The next alternatives that may fit as well as each lane's best, which leads the block so that it can win."""
        best, token, _, at = self._standing(slots)
        radius, tried = self._radius(slots, token, best, at), self.attempts.tried[slots]
        few = bool((self.attempts.tries[slots] < _RIVALS_AT_ONCE[0]).all())
        rivals, _ = self.vocabulary.rivals(token, radius, tried, _RIVALS_AT_ONCE[0 if few else 1])
        rivals = rivals[:, (rivals >= 0).any(0)]
        return Block(slots, torch.cat([token[:, None], rivals], -1), part="rivals")

    def _standing(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, At]:
        """Of each lane's position, `[b]`: the best residual and its token; how near any other token can come to that
        token's state; and the figures of its class."""
        best, token = self.attempts.near[slots, 0], self.attempts.near_ids[slots, 0].clamp_min(0)
        at = self.tolerances.at(self.lanes.length[slots])
        return best, token, at.bound(self.vocabulary.separation_of(token), best), at

    def _half_way(self, token: Tensor, at: At) -> Tensor:
        """Half of how near any other token's state can come to these tokens', where noise is typical: what is nearer
        than that to one of them is nearer to it than to all others, though it may not fit."""
        return at.bound(self.vocabulary.separation_of(token), at.typical) / 2

    def _radius(self, slots: Tensor, token: Tensor, best: Tensor, at: At) -> Tensor:
        """How near a row has to be to that of each lane's best token for it to be in question, `[b]`: by what holds
        everywhere, and by what was seen at the position itself."""
        required = at.required(best, self.z)
        radius = at.radius(required, best)
        if at.exact:
            return radius
        # all that is remembered: the nearest few alone would speak of the near ones
        others, apart = self.attempts.near_ids[slots, 1:], self.attempts.near[slots, 1:] - best[:, None]
        return torch.minimum(radius, self.radius_seen(at, required, token, others, apart))

    def radius_seen(self, at: At, required: Tensor, token: Tensor, others: Tensor, apart: Tensor) -> Tensor:
        """`At.radius_seen` where the tokens `others [n, C]` (−1 for none) were seen to be so far `apart [n, C]` from
        `token [n]`, at least."""
        table, unit = self.vocabulary.seen, self.vocabulary.unit
        beside, own = sent(unit.device, others.clamp_min(0), token)
        rows = told_one((table[beside] - table[own][:, None]).norm(dim=-1) / unit[own, None])
        return at.radius_seen(required, apart, rows.masked_fill((others < 0) | (rows == 0), torch.inf))

    def _rivals_tried(
        self, slots: Tensor, token: Tensor, best: Tensor, at: At, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`[b]` bool each: no untried token is left near enough to be in question; and those that are left are more
        than are ever tried (only looked up where wanted, for lanes that wait)."""
        due = self.attempts.rivals_due[slots] & wanted
        tried, given_up = torch.zeros_like(due), torch.zeros_like(due)
        if bool(due.any()):
            radius = self._radius(slots, token, best, at)[due]
            left, more = self.vocabulary.rivals(token[due], radius, self.attempts.tried[slots[due]], 1)
            none = (left < 0).all(-1)
            enough = self.attempts.rivals[slots[due]] >= _RIVALS_IN_ALL
            tried[due], given_up[due] = none & ~more, (none & more) | (~none & enough)
        return tried, given_up


def behind(run: Run, found: RunVerdict, stopped: Tensor, position: Tensor, hidden: Tensor) -> Behind:
    """What the lanes that stopped in a run showed behind their mismatch."""
    step = torch.arange(run.ids.shape[1])
    after = (step > found.counts[:, None]) & (step < run.counts[:, None]) & stopped[:, None]
    at, column = after.nonzero(as_tuple=True)
    near = found.near[at, column]
    return Behind(run.slots[at], position[at, column], run.ids[at, column], (at, column), hidden, near)
