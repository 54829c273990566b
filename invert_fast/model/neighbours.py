"""The nearest rows of the tokens that occur: looked up once each, in a few directions, kept from then on.

A projection on orthonormal directions never lengthens a difference. So the rows nearest in it are scored in full, and
whatever was not among them is at least as far away as the last of them is in the projection: no row is overlooked, and
nothing grows with the square of the vocabulary.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .. import ops
from .row_table import RowTable
from .transfer import sent_one, told

_DIRECTIONS, _PCA_ROWS = 64, 16384
NEAREST = 32  # rows kept a token
_AT_ONCE, _ROWS_AT_ONCE = 1024, 128  # tokens that are looked up at once; whose nearest rows are, in full width
_ROUNDING = 4e-5  # of a row's squared length: what squared distances in the projection may be off


class Neighbours:
    """rows `[V, D]`, a few at a time: what distances are measured in; allowed `[V]` bool: the rows that count;
    representative `[V]`: lowest row equal to each, which is never a neighbour of it; unit `[V]`: what distances from a
    row are measured in. All these are on the decoder's device; what is looked up is asked for and kept on the host.
    """

    def __init__(self, rows: Tensor | RowTable, allowed: Tensor, representative: Tensor, unit: Tensor):
        self.rows, self.allowed, self.representative, self.unit = rows, allowed, representative, unit
        self.candidates = allowed.nonzero().flatten()
        self._at = torch.full((len(representative),), -1)  # where a token is in the tables
        self._ids = self._at.new_empty(0, NEAREST)
        self._distance, self._beyond = torch.empty(0, NEAREST), torch.empty(0)

    def of(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest different allowed rows of `tokens [n]`, nearest first: ids `[n, NEAREST]` (−1 where there are
        fewer), their distances, ∞ for none, and `beyond [n]`: no other row is nearer than that."""
        new = tokens[self._at[tokens] < 0].unique()
        if len(new):
            self.keep(new, *told(*self._look_up(sent_one(self.unit.device, new))))
        at = self._at[tokens]
        return self._ids[at], self._distance[at], self._beyond[at]

    def keep(self, tokens: Tensor, ids: Tensor, distance: Tensor, beyond: Tensor) -> None:
        """Add what was looked up, now or by an earlier run."""
        self._at[tokens] = torch.arange(len(self._ids), len(self._ids) + len(tokens))
        self._ids = torch.cat([self._ids, ids])
        self._distance, self._beyond = torch.cat([self._distance, distance]), torch.cat([self._beyond, beyond])

    def kept(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens looked up so far, and what was found."""
        tokens = (self._at >= 0).nonzero().flatten()
        at = self._at[tokens]
        return tokens, self._ids[at], self._distance[at], self._beyond[at]

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def _projected(self) -> Tensor:
        """The allowed rows in the directions in which they differ most, `[A, d]`."""
        if not self.projects:
            return self.rows[self.candidates].contiguous()
        return torch.cat([self.rows[part] @ self._directions for part in self.candidates.split(_AT_ONCE)])

    @cached_property
    def _directions(self) -> Tensor:
        some = self.candidates[:: max(1, len(self.candidates) // _PCA_ROWS)].split(_AT_ONCE)
        mean = torch.stack([self.rows[part].double().sum(0) for part in some]).sum(0) / sum(map(len, some))
        spread = mean.new_zeros(len(mean), len(mean))
        for part in some:
            away = self.rows[part].double() - mean
            spread += away.T @ away
        return torch.linalg.eigh(spread).eigenvectors[:, -_DIRECTIONS:].float().contiguous()

    def _look_up(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self._look_up_some(part) for part in tokens.split(_AT_ONCE)]
        ids, distance, beyond = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return ids, distance, beyond

    @property
    def projects(self) -> bool:
        """Whether the projection has fewer directions than a row."""
        return self.rows.shape[1] > _DIRECTIONS

    def nearest_in_projection(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The candidates nearest to `rows [n, D]` in the projection: places among the candidates `[n, count]`, −1 where
        there are fewer; and `beyond [n]`: no other candidate's row is nearer than that, in full."""
        inside = rows @ self._directions if self.projects else rows
        found = ops.nearest_tokens(inside, self._projected, count, "l2", backend="own")[1]
        last = (self._projected[found[:, -1].clamp_min(0)] - inside).square().sum(-1)
        return found, (last - _ROUNDING * inside.square().sum(-1)).clamp_min(0).sqrt()

    def _look_up_some(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, unit = self.rows[tokens], self.unit[tokens]
        count = min(NEAREST + 1, len(self.candidates))  # the token itself is among them
        found, beyond = self.nearest_in_projection(rows, count)
        beyond = beyond / unit
        ids = self.candidates[found.clamp_min(0)]
        pairs = zip(ids.split(_ROWS_AT_ONCE), rows.split(_ROWS_AT_ONCE), strict=True)
        away = torch.cat([(self.rows[near] - row[:, None]).norm(dim=-1) for near, row in pairs]) / unit[:, None]
        same = self.representative[ids] == self.representative[tokens][:, None]
        distance, order = away.masked_fill(same | (found < 0), torch.inf).sort(dim=-1, stable=True)
        ids = ids.gather(1, order).masked_fill(distance.isinf(), -1)
        everything = found[:, -1] < 0 if count < len(self.candidates) else torch.ones_like(beyond).bool()
        # with all there are found, the nearest that is not listed is known
        unlisted = distance[:, NEAREST] if count > NEAREST else torch.full_like(beyond, torch.inf)
        beyond = torch.where(everything, unlisted, beyond)
        pad = (0, max(0, NEAREST - count))
        ids = torch.nn.functional.pad(ids[:, :NEAREST], pad, value=-1)
        return ids, torch.nn.functional.pad(distance[:, :NEAREST], pad, value=torch.inf), beyond
