"""What can be told apart at all: tokens with equal embedding rows, and how far each token's nearest rival lies.

A decoder sees a token only through its embedding row, so tokens with equal rows are one token to it, at every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import neighbour_store
from .decoder import Decoder
from .embedding import BLOCK, Embedding
from .neighbours import Neighbours
from .transfer import told_one
from .wide import Wide

RIVALS_MOST = 256  # nearest rows of a token that are ever tried beside it
_LEFT = 8  # of those beyond, how many are named
_SAMPLE = 2048  # tokens that the hardest pairs are looked for among


class Vocabulary:
    """The candidate tokens of a decoder.

    allowed `[V]` bool: ids a candidate may have (known to the tokenizer, one representative a class of equal rows);
    representative `[V]`: lowest id with the same row; class_size `[V]`, on the host: how many usable ids share the row;
    embedding, seen: all rows, `[ids]` gives some in fp32: as the model sees them, and as far as states can show them,
    which is where distances are measured; unit `[V]`: what distances from a row are measured in: the median row norm,
    or its own where that is longer (a long row makes a long state); candidates: how many ids are allowed.
    Tables are on the decoder's device. What is asked about few tokens is asked and answered on the host.
    """

    def __init__(self, decoder: Decoder):
        self.embedding = decoder.embedding
        self.size = len(self.embedding)
        usable = torch.arange(self.size, device=self.embedding.device) < decoder.usable_ids
        usable[self.embedding.spoilt] = False  # the state of a row that is no number is none either
        self.representative, code = _equal_rows(self.embedding)
        self.allowed = usable & (self.representative == torch.arange(self.size, device=usable.device))
        sizes = torch.zeros(self.size, dtype=torch.long, device=usable.device)
        self.class_size = told_one(sizes.index_add_(0, self.representative, usable.long())[self.representative])
        self.usable = usable
        self.seen = decoder.seen_rows()
        every = torch.arange(self.size, device=usable.device)
        norms = torch.cat([self.seen[part].norm(dim=-1) for part in every.split(BLOCK)])
        self.unit = norms.clamp_min(norms[self.allowed].median().clamp_min(1e-30))
        self.neighbours = Neighbours(self.seen, self.allowed, self.representative, self.unit)
        self.candidates = len(self.neighbours.candidates)
        self.wide = Wide(self.neighbours, RIVALS_MOST + _LEFT + 1)
        self._file = neighbour_store.name(decoder, _digest(code)) if self.size >= neighbour_store.LARGE else None
        self._stored = neighbour_store.read(self._file, self.neighbours) if self._file else 0

    def equals(self, token: int) -> list[int]:
        """All usable ids with the same row as `token`, itself included, ascending."""
        same = (self.representative == self.representative[token]) & self.usable
        return same.nonzero().flatten().tolist()

    def separation_of(self, tokens: Tensor) -> Tensor:
        """What the distance of these tokens' rows to any different allowed row is at least, in units of `unit`: that
        of the nearest, but for roundings of the search. Looked up for the tokens that occur, once each."""
        _, distance, beyond = self._nearest(tokens.flatten())
        return torch.minimum(distance[:, 0], beyond).view(tokens.shape)

    def closest_pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """The hardest pairs to tell apart, of a sample of the allowed tokens: the `count` of them with the nearest
        rival, and those rivals."""
        tokens = told_one(self.neighbours.candidates)
        tokens = tokens[torch.linspace(0, len(tokens) - 1, min(_SAMPLE, len(tokens))).long()]
        ids, distance, _ = self._nearest(tokens)
        order = distance[:, 0].topk(min(count, len(tokens)), largest=False).indices
        order = order[ids[order, 0] >= 0]
        return tokens[order], ids[order, 0]

    def distances(self, tokens: Tensor) -> Tensor:
        """`[b, V]` distance of every row to those of `tokens`, exact for near rows; in units of `unit`."""
        rows, every = self.seen[tokens], torch.arange(self.size, device=self.allowed.device)
        parts = [
            torch.cdist(rows, self.seen[part], compute_mode="donot_use_mm_for_euclid_dist")
            for part in every.split(BLOCK)
        ]
        return torch.cat(parts, 1) / self.unit[tokens, None]

    def rivals(self, tokens: Tensor, radius: Tensor, tried: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The nearest untried allowed tokens within `radius [b]` of `tokens [b]`: ids `[b, count]`, −1 where none; and
        `[b]` bool: whether there may be more of them than the RIVALS_MOST nearest, which is as far as is looked."""
        ids, distance, beyond = self._nearest(tokens)
        found, more = _untried(ids, distance, radius, tried, count), ~(radius < beyond)
        # however many are asked for: the table's, near in a projection, need not be among the nearest of all
        wide = more.nonzero().flatten()
        if len(wide):
            ids, distance = self.wide.of(tokens[wide])
            near = distance[:, :RIVALS_MOST]
            found = torch.nn.functional.pad(found, (0, count - found.shape[1]), value=-1)
            found[wide] = _untried(ids[:, :RIVALS_MOST], near, radius[wide], tried[wide], count)
            more[wide] = ~(distance[:, RIVALS_MOST:] > radius[wide, None]).all(-1)
        return found, more

    def rivals_within(self, tokens: Tensor, radius: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The allowed tokens within `radius [b]` of `tokens [b]`, nearest first, but for the first `start` and up to
        the `stop`th: ids `[b, n]`, −1 where none; and `[b]` bool: whether there may be more behind."""
        ids, distance, beyond = self._nearest(tokens)
        more = ~(radius < beyond)  # of a radius that is no number, too
        had, done = ids[:, :start], torch.zeros_like(ids, dtype=torch.bool)
        done[:, :start] = True
        if stop > ids.shape[1]:
            pad = (0, stop - ids.shape[1])
            ids, done = torch.nn.functional.pad(ids, pad, value=-1), torch.nn.functional.pad(done, pad, value=True)
            distance = torch.nn.functional.pad(distance, pad, value=torch.inf)
            wide = more.nonzero().flatten()
            if len(wide):
                many, away = self.wide.of(tokens[wide])
                more[wide] = ~(away[:, stop:] > radius[wide, None]).all(-1)
                ids[wide], distance[wide] = many[:, :stop], away[:, :stop]
                # the nearest of all are not all among the nearest of the table, which were found in a projection
                done[wide] = (ids[wide][:, :, None] == had[wide][:, None]).any(-1)
        inside = ~(distance > radius[:, None]) & (ids >= 0)
        more = more | inside[:, stop:].any(-1)
        out = ~inside[:, :stop] | done[:, :stop]
        order = out.int().argsort(dim=-1, stable=True)
        return ids.gather(1, order).masked_fill(out.gather(1, order), -1), more

    def next_rivals(self, token: int) -> list[int]:
        """A few of the tokens beyond the RIVALS_MOST nearest."""
        found = self.wide.of(torch.tensor([token]))[0][0, RIVALS_MOST:]
        return found[found >= 0].tolist()

    def _nearest(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.neighbours.of(tokens)
        if self._file and neighbour_store.worth_keeping(len(self.neighbours), self._stored):
            self._stored = len(self.neighbours)
            neighbour_store.write(self._file, self.neighbours)
        return found


def _untried(ids: Tensor, distance: Tensor, radius: Tensor, tried: Tensor, count: int) -> Tensor:
    """The first `count` of `ids [b, n]`, nearest first, that lie within the radius and were not tried, −1 for none."""
    out = (ids < 0) | (distance > radius[:, None]) | tried.gather(1, ids.clamp_min(0))
    order = out.int().argsort(dim=-1, stable=True)[:, :count]
    return ids.gather(1, order).masked_fill(out.gather(1, order), -1)


def _digest(code: Tensor) -> int:
    """One number of all rows' hashes and their order."""
    return int((code * (2 * torch.arange(len(code), device=code.device) + 1)).sum())


def _equal_rows(table: Embedding) -> tuple[Tensor, Tensor]:
    """`[V]` lowest id with exactly the same row, and a 64-bit hash of each: rows are grouped by that, then compared
    value by value."""
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (table.shape[1],), generator=generator).to(table.device) | 1
    code = odd.new_empty(len(table))
    for part, to in zip(table.blocks(), code.split(BLOCK), strict=True):
        to.copy_(_hashed(part, odd))
    order = torch.sort(code, stable=True).indices
    same = torch.zeros(len(table), dtype=torch.bool, device=table.device)
    alike = (code[order][1:] == code[order][:-1]).nonzero().flatten() + 1
    for at in alike.split(BLOCK):
        same[at] = (table[order[at]] == table[order[at - 1]]).all(-1)
    start = torch.where(same, -1, torch.arange(len(table), device=table.device)).cummax(0).values
    representative = torch.empty_like(order)
    representative[order] = order[start]
    return representative, code


def _hashed(rows: Tensor, odd: Tensor) -> Tensor:
    bits = (rows + 0.0).view(torch.int32).long()  # +0.0 makes −0.0 equal 0.0
    return ((bits ^ (bits << 21)) * odd).sum(-1)
