"""Hundreds of the nearest rows of the few tokens that have so many rivals, each looked up once."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .. import ops
from .embedding import BLOCK
from .neighbours import Neighbours
from .transfer import sent_one, told

_LISTED = 4096  # rows nearest in the projection, that are scored in full
_KEPT = 16384  # tokens: a few kilobytes each
_AT_ONCE = 64  # tokens whose lists are made at once


class Wide:
    """The `count` nearest candidates of tokens, in the distances of `neighbours`; exactly, as if all were scored."""

    def __init__(self, neighbours: Neighbours, count: int):
        self.neighbours, self.count = neighbours, count
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of `tokens [n]`, n > 0, on the host: ids `[n, count]`, nearest first, without those of an equal row, −1 where
        there are fewer; and distances, ∞ there."""
        asked = tokens.tolist()
        new = [token for token in dict.fromkeys(asked) if token not in self._kept]
        if len(self._kept) + len(new) > _KEPT:
            self._kept.clear()
            new = [*dict.fromkeys(asked)]
        for start in range(0, len(new), _AT_ONCE):
            part = torch.tensor(new[start : start + _AT_ONCE])
            looked_up = told(*self._look_up(sent_one(self.neighbours.unit.device, part)))
            for token, *found in zip(part.tolist(), *looked_up, strict=True):
                self._kept[token] = found[0], found[1]
        ids, distance = zip(*(self._kept[token] for token in asked), strict=True)
        return torch.stack(ids), torch.stack(distance)

    def _look_up(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        near, candidates = self.neighbours, self.neighbours.candidates
        rows, count = near.rows[tokens], min(self.count, len(candidates))
        if near.projects and len(candidates) > _LISTED:
            listed, beyond = near.nearest_in_projection(rows, _LISTED)
            found, away = self._best_of(rows, listed, count)
            left = away[:, -1] > beyond  # one that is not listed may be nearer
            if bool(left.any()):
                found[left], away[left] = self._best_of(rows[left], self._searched(rows[left], count), count)
        else:
            found, away = self._best_of(rows, self._searched(rows, count), count)
        ids, away = candidates[found.clamp_min(0)], away / near.unit[tokens, None]
        same = near.representative[ids] == near.representative[tokens][:, None]
        distance, order = away.masked_fill(same | (found < 0), torch.inf).sort(dim=-1, stable=True)
        ids, pad = ids.gather(1, order).masked_fill(distance.isinf(), -1), (0, self.count - count)
        return torch.nn.functional.pad(ids, pad, value=-1), torch.nn.functional.pad(distance, pad, value=torch.inf)

    def _best_of(self, rows: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Of candidates at `places [n, m]` (−1 for none) the `count` nearest to `rows [n, D]`, and how far they are."""
        near = self.neighbours
        ids = near.candidates[places.clamp_min(0)]
        away = torch.stack([(near.rows[some] - row).norm(dim=-1) for some, row in zip(ids, rows, strict=True)])
        away, order = away.masked_fill(places < 0, torch.inf).sort(dim=-1, stable=True)
        return places.gather(1, order)[:, :count], away[:, :count]

    def _searched(self, rows: Tensor, count: int) -> Tensor:
        """The `count` nearest of all candidates to `rows [n, D]`: places among them, −1 for none left."""
        near = self.neighbours
        best, found = rows.new_empty(len(rows), 0), near.representative.new_empty(len(rows), 0)
        for start, part in zip(itertools.count(0, BLOCK), near.candidates.split(BLOCK)):
            distance, at = ops.nearest_tokens(rows, near.rows[part], min(count, len(part)), "l2", backend="own")
            best = torch.cat([best, distance], 1)
            found = torch.cat([found, torch.where(at < 0, at, at + start)], 1)
            best, order = best.sort(dim=-1, stable=True)
            best, found = best[:, :count], found.gather(1, order)[:, :count]
        return found
