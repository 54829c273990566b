"""Which texts a linear lens is fitted on, and their states.

They begin as real captures do: most with what the tokenizer puts before a text, some with a chat template's opening,
some with nothing. States of natural text and of random tokens differ, and each kind teaches what the other cannot:
contexts come from what the model writes and from the package's own texts, distinct tokens (many times as many as a
state has numbers are needed) from random ones.

A small model writes most of it: what it knows is narrow, and so are the texts that it is given. One that people use was
trained on the web and is given the like, so it reads the package's pages instead: as many tokens of them teach more
than what it writes itself, which takes longer besides (docs/real_models.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.own_lanes import lanes_of
from ..model.samples import held_out_page_ids, opening_of, opening_of_chat, page_ids, prose_ids
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from .sampling import noisy
from .writing import likely_tokens, write

LENGTH = 48
_CHEAP = 20_000_000  # parameters of a model that writes all we want in seconds
_A_NUMBER, _LEAST, _MOST = 40, 16_384, 65_536  # tokens per number of a state, where they are cheap; at least, at most
_A_NUMBER_DEAR, _LEAST_DEAR = 20, 24_576  # where they are dear
_SHARES = {True: (0.6, 0.15, 0.25), False: (0.0, 0.75, 0.25)}  # written, read, random: of small models and of others
_SWAPPED, _SWAPS = 0.5, 0.3  # of the written and prose texts, how many have tokens replaced at random, and how many
_ASKED_MORE = 1536  # rows that are asked for what is likely, where many texts are written
_BARE, _CHATS = {True: 0.5, False: 0.125}, 0.125  # of all texts: begun with nothing, begun as a chat
_LONG, _LONG_SHARE = 1024, 4  # a few texts are long, a quarter of the tokens: late positions must not surprise the lens
_SINGLES, _SINGLES_DEAR = 8192, 1536  # texts of one token, at most
_TOKENS_AT_ONCE = 4096
_KEPT, _HELD, _HELD_TOKENS = 128, 8, 2048  # texts whose prefixes stay; one in so many is held out, up to so many tokens
_KEPT_DEAR, _HELD_TOKENS_DEAR = 48, 768


@dataclass
class Held:
    """Texts that stay in lanes, one each: ids `[b, T]`, states `[b, T, D]`, to be asked what else might stand there."""

    ids: Tensor
    states: Tensor
    lanes: Lanes


class Mixture:
    """The texts of one fit, deterministic from the seed. cheap: the model is small enough to run as much as we want.

    more: so many tokens instead, for a lens that has had the package's texts already, but for these `pages`: the model
    writes in place of those. likely: what it writes in, see `likely_tokens`; found out where it is not given, and told
    to the next.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        seed: int,
        noise: float,
        bar: tqdm,
        more: int | None = None,
        likely: Tensor | None = None,
        pages: Sequence[int] = (),
    ):
        self.decoder, self.vocabulary, self.seed, self.noise, self.bar = decoder, vocabulary, seed, noise, bar
        self.generator = torch.Generator().manual_seed(seed)
        self.cheap = decoder.device.type == "cuda" or decoder.parameters <= _CHEAP
        self.length = min(LENGTH, decoder.max_length)
        self.allowed = vocabulary.allowed.nonzero().flatten()
        a_number, least = (_A_NUMBER, _LEAST) if self.cheap else (_A_NUMBER_DEAR, _LEAST_DEAR)
        self.tokens = more or min(max(a_number * decoder.width, least), _MOST)
        self.rows, self.asked = max(8, self.tokens // self.length), None if more is None else _ASKED_MORE
        self.writes = self.cheap and vocabulary.size < MANY_TOKENS
        self.given = list(pages) if more is not None else self._texts_at_hand()
        self.written, self.read, _ = (round(share * self.rows) for share in _SHARES[self.writes])
        if len(self.given) < self.length:
            self.written, self.read, self.given = self.written + self.read, 0, []
        held = min(self.rows // _HELD, (_HELD_TOKENS if self.cheap else _HELD_TOKENS_DEAR) // self.length)
        self.held_rows = max(1, held)
        self.kept_rows = min(_KEPT if self.cheap else _KEPT_DEAR, self.rows - self.held_rows)
        self.long = min(decoder.max_length, _LONG)
        self.singles = min(len(self.allowed), _SINGLES if self.cheap else max(_SINGLES_DEAR, 2 * decoder.width))
        asked = self.kept_rows * self.length  # what else might have stood there
        self.likely = likely
        self.work = (self.written + self.rows) * self.length + self.singles + asked
        self._offset = 0

    def texts(self) -> Tensor:
        """Ids `[rows, length]` of all short texts, shuffled."""
        written, prose, given = self.written, self.read, self.given
        ids = self.random(self.rows, self.length)
        starts = self._openings(self.rows)
        if not self.cheap:  # every kind of beginning is written by itself, and is as dear as all of them together
            starts[:written] = [opening_of(self.decoder)[: self.length // 2]] * written
        for row, begun in enumerate(starts):
            if written <= row < written + prose:
                at = (row - written) * len(given) // prose
                taken = (given[at:] + given)[: self.length]
                ids[row] = torch.tensor(taken + [0] * (self.length - len(taken)))
                ids[row, len(begun) :] = ids[row, : self.length - len(begun)].clone()
            ids[row, : len(begun)] = torch.tensor(begun, dtype=ids.dtype)
        if self.length > 1:
            self._write(ids, starts[:written])
        natural = torch.rand(written + prose, generator=self.generator) < _SWAPPED
        swap = (torch.rand(len(natural), self.length, generator=self.generator) < _SWAPS) & natural[:, None]
        for row, begun in enumerate(starts[: len(natural)]):
            swap[row, : len(begun)] = False
        swap = swap.to(ids.device)
        ids[: len(natural)] = torch.where(swap, self.random(*swap.shape), ids[: len(natural)])
        ids = torch.where(self.vocabulary.usable[ids], ids, self.random(*ids.shape))
        order = torch.randperm(self.rows, generator=self.generator).to(ids.device)
        return self.vocabulary.representative[ids[order]]

    def varied(self, ids: Tensor) -> Tensor:
        """The same texts `[b, T]` with some of their tokens replaced at random: contexts that nobody has to write."""
        swap = torch.rand(ids.shape, generator=self.generator) < _SWAPS
        swap[:, 0] = False
        return self.vocabulary.representative[torch.where(swap.to(ids.device), self.random(*ids.shape), ids)]

    def natural(self, rows: int) -> Tensor:
        """Ids `[rows, length]` of texts as people write them, in pages that no lens is fitted on, or as a small model
        writes them; behind what the tokenizer puts before a text."""
        ids, begun = self.random(rows, self.length), opening_of(self.decoder)[: self.length // 2]
        ids[:, : len(begun)] = torch.tensor(begun, dtype=ids.dtype, device=ids.device)
        given = [] if self.writes else held_out_page_ids(self.decoder)
        room = self.length - len(begun)
        if len(given) >= room:
            starts = torch.linspace(0, len(given) - room, rows).long()
            ids[:, len(begun) :] = torch.tensor(given)[starts[:, None] + torch.arange(room)].to(ids)
        elif self.length > 1:
            self._write(ids, [begun] * rows)
        return self.vocabulary.representative[torch.where(self.vocabulary.usable[ids], ids, self.random(*ids.shape))]

    def held_out(self, ids: Tensor) -> Held:
        """Texts that are kept from the fit: the first of `ids`; of a model that reads, twice as many as well that are
        nothing but natural, as most captures are."""
        held = ids[: self.held_rows]
        return self.hold(held if self.writes else torch.cat([held, self.natural(2 * self.held_rows)]))

    def random(self, *shape: int) -> Tensor:
        """Random candidates, `shape`."""
        return self.allowed[torch.randint(len(self.allowed), shape, generator=self.generator).to(self.allowed.device)]

    def _openings(self, count: int) -> list[list[int]]:
        plain, chat = opening_of(self.decoder), opening_of_chat(self.decoder)
        room = self.length // 2
        openings = []
        for draw in torch.rand(count, generator=self.generator).tolist():
            bare, chats = draw < _BARE[self.cheap], draw > 1 - _CHATS
            begun = [] if bare else chat if chats and 0 < len(chat) <= room else plain
            openings.append(begun[:room] if len(begun) > room else begun)
        return openings

    def _texts_at_hand(self) -> list[int]:
        """What a first fit reads."""
        if self.writes:
            return prose_ids(self.decoder)
        return page_ids(self.decoder, round(_SHARES[False][1] * self.rows) * self.length)

    def _write(self, ids: Tensor, starts: list[list[int]]) -> None:
        """Fill the first rows of `ids` with what the model writes after their starts, or after a token at random."""
        if self.likely is None and starts:
            prose = prose_ids(self.decoder)
            rows = torch.tensor(prose[: len(prose) // self.length * self.length], device=ids.device)
            rows = rows.view(-1, self.length) if len(rows) else ids
            self.likely = likely_tokens(self.decoder, self.vocabulary, rows, self.asked)
        for begun in {tuple(start) for start in starts}:
            rows = torch.tensor([i for i, start in enumerate(starts) if tuple(start) == begun], device=ids.device)
            for part in rows.split(_TOKENS_AT_ONCE // LENGTH * 2):
                at = ids[part, : max(1, len(begun))]
                ids[part] = write(self.decoder, at, self.length, self.likely, self.generator, self.bar)

    def run(self, ids: Tensor) -> Tensor:
        """States of texts, `[b, T] → [b, T, D]` fp32, as noisy as they are expected to be."""
        found = []
        for part in ids.split(max(1, _TOKENS_AT_ONCE // ids.shape[1])):
            found.append(self.noisy(self.decoder.states(part).float()))
            self.bar.update(part.numel())
        return torch.cat(found)

    def long_texts(self, ids: Tensor) -> Tensor:
        """A few of the texts run together, `[n, _LONG]`; none where the model has no more positions than the others."""
        if self.long <= self.length:
            return ids.new_empty(0, self.long)
        count = max(1, self.tokens // _LONG_SHARE // self.long) if self.cheap else 1
        joined = ids.flatten()[: count * self.long]
        return joined[: len(joined) // self.long * self.long].view(-1, self.long)

    def hold(self, ids: Tensor) -> Held:
        """Run texts and keep their prefixes."""
        lanes = lanes_of(self.decoder, *ids.shape)
        lanes.target_length[:] = ids.shape[1]
        slots, whole = torch.arange(len(ids)), torch.full((len(ids),), ids.shape[1])
        states = self.noisy(lanes.draft(slots, ids).float())
        lanes.commit(slots, ids, whole, slots, keep=torch.ones_like(slots, dtype=torch.bool))
        self.bar.update(ids.numel())
        return Held(ids, states, lanes)

    def noisy(self, states: Tensor) -> Tensor:
        self._offset += 1
        return noisy(states, self.noise, self.seed + self._offset)
