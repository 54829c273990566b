"""Rivals of what a run found, side by side: positions that fit, but where another token may fit as well.

A run is committed with such positions in it, for its states are all the same if the rivals lose, as they nearly always
do. They are tried at their positions with the prefix of the committed text, all texts in one call; where one wins, the
text is taken back to there and goes on as after any other mismatch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.lanes import Lanes
from ..model.neighbours import NEAREST
from ..model.transfer import picked, told_one
from ..model.vocabulary import RIVALS_MOST
from .tolerances import Tolerances
from .verdict import Judge

_WAVES = (2, 8, NEAREST, RIVALS_MOST)  # so many rivals of a position are tried, nearest first, before any more are


@dataclass(frozen=True)
class Tried:
    """Of positions `[n]`: unclear bool, whether what stands there is not alone; lost bool, whether a rival is nearer
    than it; second: the nearest rival's residual, in the metric of the noise; and of each position the rivals tried and
    their residuals `[n, C]` (−1 and ∞ for none), in the order they were."""

    unclear: Tensor
    lost: Tensor
    second: Tensor
    ids: Tensor
    residual: Tensor

    def within(self, reach: Tensor) -> list[list[int]]:
        """Of each position the rivals tried that came so near, `reach [n]`."""
        near = self.residual <= reach[:, None]
        return [row[close].tolist() for row, close in zip(self.ids, near, strict=True)]


def try_rivals(judge: Judge, slots: Tensor, positions: Tensor, residual: Tensor, at_once: int) -> Tried:
    """Try the rivals of committed tokens: those of lanes `slots [n]` at `positions [n]`, of `residual [n]` each. Keeps
    calls to `at_once` tokens."""
    lanes, vocabulary, tolerances, z = judge.lanes, judge.vocabulary, judge.tolerances, judge.z
    token, at = lanes.ids[slots, positions], tolerances.at(positions)
    required, reach = at.required(residual, z), at.reach(residual, z)
    radius = at.radius(required, residual)
    unclear, second = torch.zeros_like(slots).bool(), torch.full_like(residual, torch.inf)
    tried, found = slots.new_empty(len(slots), 0), residual.new_empty(len(slots), 0)
    open_ones, start = torch.arange(len(slots)), 0
    for stop in _WAVES if tolerances.level is None else _WAVES[:-1]:
        ids, more = vocabulary.rivals_within(token[open_ones], radius[open_ones], start, stop)
        ids = ids[:, : int((ids >= 0).sum(-1).max())]
        block = tried.new_full((len(slots), ids.shape[1]), -1)
        block[open_ones] = ids
        tried = torch.cat([tried, block], 1)
        some, new = open_ones[(ids >= 0).any(-1)], torch.full_like(block, 0, dtype=residual.dtype) + torch.inf
        for part in some.split(max(1, at_once // max(1, ids.shape[1]))) if len(some) else ():
            new[part] = _residuals(lanes, tolerances, slots[part], positions[part], block[part])
        found = torch.cat([found, new], 1)
        second = found.amin(-1) if found.shape[1] else second
        unclear[open_ones] = second[open_ones] <= reach[open_ones]
        # one is enough to lose to: what follows is seen from the winner
        goes_on = more & (second[open_ones] >= residual[open_ones])
        goes_on &= ~unclear[open_ones] | (tolerances.level is None)  # with loud noise one that is near is enough
        open_ones = open_ones[goes_on]
        if not at.exact and len(open_ones):  # what was seen here tells more than what holds everywhere
            apart = found - residual[:, None]
            radius = torch.minimum(radius, judge.radius_seen(at, required, token, tried, apart))
            open_ones = open_ones[vocabulary.rivals_within(token[open_ones], radius[open_ones], stop, stop)[1]]
        if not len(open_ones):
            break
        start = stop
    unclear[open_ones] = True  # they have more than are ever tried
    if tolerances.level is not None:  # a nearer one is no better: the prior and what follows spoke for this one
        return Tried(unclear, torch.zeros_like(unclear), second, tried, found)
    return Tried(unclear, second < residual, second, tried, found)


def _residuals(lanes: Lanes, tolerances: Tolerances, slots: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Of the tokens `ids [b, C]` at those positions, in the metric of the noise; ∞ for none."""
    hidden = lanes.fan_out_at(slots, positions, ids.clamp_min(0))
    residual = tolerances.residuals(hidden, picked(lanes.targets, slots, positions), positions[:, None])[1]
    return told_one(residual).masked_fill(ids < 0, torch.inf)
