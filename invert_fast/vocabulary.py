"""What can be told apart at all: tokens with equal embedding rows, and how far each token's nearest rival lies.

A decoder sees a token only through its embedding row, so tokens with equal rows are one token to it, at every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Decoder

_PROJECT_ABOVE, _PROJECTION_WIDTH = 8192, 64


class Vocabulary:
    """The candidate tokens of a decoder.

    allowed `[V]` bool: ids a candidate may have (known to the tokenizer, one representative a class of equal rows);
    representative `[V]`: lowest id with the same row; class_size `[V]`: how many usable ids share the row.
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
        self.scale = self.embedding[self.allowed].norm(dim=-1).mean().clamp_min(1e-30)
        self._separation: Tensor | None = None

    def equals(self, token: int) -> list[int]:
        """All usable ids with the same row as `token`, itself included, ascending."""
        same = (self.representative == self.representative[token]) & self.usable
        return same.nonzero().flatten().tolist()

    @property
    def separation(self) -> Tensor:
        """`[V]` distance of each row to the nearest different allowed row, in units of the mean row norm."""
        if self._separation is None:
            self._separation = self._nearest_rows()[0]
        return self._separation

    def closest_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` allowed tokens with the nearest rival, and those rivals: the hardest pairs to tell apart."""
        distance, rival = self._nearest_rows()
        distance = distance.masked_fill(~self.allowed, float("inf"))
        tokens = distance.topk(min(count, int(self.allowed.sum())), largest=False).indices
        return tokens, rival[tokens]

    def rivals(self, tokens: Tensor, radius: Tensor, tried: Tensor, count: int) -> Tensor:
        """The nearest untried allowed tokens within `radius [b]` of `tokens [b]`: ids `[b, count]`, −1 where none."""
        distance = torch.cdist(self.embedding[tokens], self.embedding) / self.scale
        distance = distance.masked_fill(tried | ~self.allowed, float("inf"))
        distance, ids = distance.topk(min(count, self.size), largest=False)
        return ids.masked_fill(distance > radius[:, None], -1)

    def _nearest_rows(self) -> tuple[Tensor, Tensor]:
        """Distance to, and id of, the nearest different allowed row of every row, `[V]` each.

        Large vocabularies are searched in a random 64-dimensional projection (near rows stay near in it), then the
        distance of the few rows found is computed exactly.
        """
        if hasattr(self, "_nearest"):
            return self._nearest
        table, ids = self.embedding, self.allowed.nonzero().flatten()
        search, width = table, table.shape[1]
        if len(ids) > _PROJECT_ABOVE and width > _PROJECTION_WIDTH:
            generator = torch.Generator().manual_seed(0)
            search = table @ torch.randn(width, _PROJECTION_WIDTH, generator=generator).to(table) / width**0.5
        norms, columns = search[ids].square().sum(-1), search[ids]
        distances, rivals = [], []
        for start in range(0, self.size, 1024):
            rows = torch.arange(start, min(start + 1024, self.size), device=table.device)
            score = norms - 2 * search[rows] @ columns.T
            score.masked_fill_(self.representative[rows][:, None] == ids, float("inf"))
            found = ids[score.topk(min(4, len(ids)), largest=False).indices]
            exact = (table[found] - table[rows][:, None]).norm(dim=-1)
            exact = exact.masked_fill(found == self.representative[rows][:, None], float("inf"))
            near = exact.min(-1)
            distances.append(near.values / self.scale)
            rivals.append(found.gather(1, near.indices[:, None])[:, 0])
        self._nearest = torch.cat(distances), torch.cat(rivals)
        return self._nearest


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
