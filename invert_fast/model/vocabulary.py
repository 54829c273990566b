"""What can be told apart at all: tokens with equal embedding rows, and how far each token's nearest rival lies.

A decoder sees a token only through its embedding row, so tokens with equal rows are one token to it, at every layer.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .decoder import Decoder

_PROJECT_ABOVE, _PROJECTION_WIDTH = 8192, 64
_NEAR = 0.03  # rows nearer than this are compared value by value: a matrix product rounds such distances away


class Vocabulary:
    """The candidate tokens of a decoder.

    allowed `[V]` bool: ids a candidate may have (known to the tokenizer, one representative a class of equal rows);
    representative `[V]`: lowest id with the same row; class_size `[V]`: how many usable ids share the row;
    seen `[V, D]`: the rows as far as states can show them, in which distances are measured; unit `[V]`: what distances
    from a row are measured in: the median row norm, or its own where that is longer (a long row makes a long state).
    """

    def __init__(self, decoder: Decoder):
        self.embedding = decoder.embedding.float()
        self.size = len(self.embedding)
        usable = torch.arange(self.size, device=self.embedding.device) < decoder.usable_ids
        self.representative = _equal_rows(self.embedding)
        self.allowed = usable & (self.representative == torch.arange(self.size, device=usable.device))
        self.class_size = torch.zeros(self.size, dtype=torch.long, device=usable.device).index_add_(
            0, self.representative, usable.long()
        )[self.representative]
        self.usable = usable
        self.seen = decoder.seen_embedding()
        norms = self.seen.norm(dim=-1)
        self._measured = torch.full_like(norms, float("nan"))  # separations, as far as they were asked for
        self.unit = norms.clamp_min(norms[self.allowed].median().clamp_min(1e-30))

    def equals(self, token: int) -> list[int]:
        """All usable ids with the same row as `token`, itself included, ascending."""
        same = (self.representative == self.representative[token]) & self.usable
        return same.nonzero().flatten().tolist()

    @property
    def separation(self) -> Tensor:
        """`[V]` distance of each row to the nearest different allowed row, in units of `unit`."""
        return self._nearest[0]

    def separation_of(self, tokens: Tensor) -> Tensor:
        """`separation[tokens]`. On a CPU only these rows are measured: a few texts have a few of all tokens."""
        if tokens.device.type != "cpu" or "_nearest" in self.__dict__:
            return self.separation[tokens]
        new = tokens[self._measured[tokens].isnan()].unique()
        if len(new):
            self._measured[new] = self._nearest_of(new)[0]
        return self._measured[tokens]

    def closest_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` allowed tokens with the nearest rival, and those rivals: the hardest pairs to tell apart."""
        distance, rival = self._nearest
        distance = distance.masked_fill(~self.allowed, float("inf"))
        tokens = distance.topk(min(count, int(self.allowed.sum())), largest=False).indices
        return tokens, rival[tokens]

    def distances(self, tokens: Tensor) -> Tensor:
        """`[b, V]` distance of every row to those of `tokens`, exact for near rows; in units of `unit`."""
        return (
            torch.cdist(self.seen[tokens], self.seen, compute_mode="donot_use_mm_for_euclid_dist")
            / self.unit[tokens, None]
        )

    def rivals(self, tokens: Tensor, radius: Tensor, tried: Tensor, count: int) -> Tensor:
        """The nearest untried allowed tokens within `radius [b]` of `tokens [b]`: ids `[b, count]`, −1 where none."""
        distance = self.distances(tokens).masked_fill(tried | ~self.allowed, float("inf"))
        distance, ids = distance.topk(min(count, self.size), largest=False)
        return ids.masked_fill((distance > radius[:, None]) | distance.isinf(), -1)

    @cached_property
    def _nearest(self) -> tuple[Tensor, Tensor]:
        """Distance to, and id of, the nearest different allowed row of every row, `[V]` each."""
        return self._nearest_of(torch.arange(self.size, device=self.allowed.device))

    @cached_property
    def _searched(self) -> tuple[Tensor, Tensor]:
        """What neighbours are searched in: the rows `[V, d]`, and their squared lengths, ∞ where not allowed."""
        search, width = self.seen, self.seen.shape[1]
        if int(self.allowed.sum()) > _PROJECT_ABOVE and width > _PROJECTION_WIDTH:
            generator = torch.Generator().manual_seed(0)
            search = search @ torch.randn(width, _PROJECTION_WIDTH, generator=generator).to(search) / width**0.5
        return search, search.square().sum(-1).masked_fill(~self.allowed, float("inf"))

    def _nearest_of(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to, and id of, the nearest different allowed row of each of `tokens [n]`, `[n]` each.

        Found by matrix products, in a random 64-dimensional projection for large vocabularies (near rows stay near in
        it); rows with a near neighbour are then compared with all others exactly.
        """
        search, lengths = self._searched
        distance, rival = torch.empty(len(tokens), device=tokens.device), torch.empty_like(tokens)
        for part in torch.arange(len(tokens), device=tokens.device).split(1024):
            rows = tokens[part]
            score = lengths - 2 * search[rows] @ search.T
            score.scatter_(1, self.representative[rows][:, None], float("inf"))
            found = score.topk(min(4, self.size), largest=False).indices
            exact = (self.seen[found] - self.seen[rows][:, None]).norm(dim=-1) / self.unit[rows, None]
            other = self.allowed[found] & (found != self.representative[rows][:, None])
            exact = exact.masked_fill(~other, float("inf"))
            distance[part], at = exact.min(-1)
            rival[part] = found.gather(1, at[:, None])[:, 0]
        for part in (distance < _NEAR).nonzero().flatten().split(16):
            rows = tokens[part]
            exact = self.distances(rows).masked_fill(~self.allowed, float("inf"))
            exact = exact.masked_fill(self.representative[rows][:, None] == self.representative, float("inf"))
            distance[part], rival[part] = exact.min(-1)
        return distance, rival


def _equal_rows(table: Tensor) -> Tensor:
    """`[V]` lowest id with exactly the same row. Rows are grouped by a 64-bit hash, then compared value by value."""
    bits = (table + 0.0).view(torch.int32).long()  # +0.0 makes −0.0 equal 0.0
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (table.shape[1],), generator=generator).to(table.device) | 1
    code = torch.cat([((part ^ (part << 21)) * odd).sum(-1) for part in bits.split(8192)])
    order = torch.sort(code, stable=True).indices
    same = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    same[1:] = (code[order][1:] == code[order][:-1]) & (table[order][1:] == table[order][:-1]).all(-1)
    start = torch.where(same, -1, torch.arange(len(table), device=table.device)).cummax(0).values
    representative = torch.empty_like(order)
    representative[order] = order[start]
    return representative
