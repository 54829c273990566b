"""A linear lens that learns from the tokens it helped to recover: each certified one is a pair of token and state.

What the lens was solved from are sums (`normal_equations.py`), which lie beside it in the cache folder. Use adds to
them, and when it has brought twice as many tokens as the lens has learned from, they are solved again. Several
processes add under a lock, each what it has found itself. No text and no state is kept, only sums over hundreds of
tokens; `INVERT_FAST_SHARPEN=off` keeps none, and leaves every lens as it is.
"""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from .linear import LinearLens
from .narrow import narrowed, wide
from .normal_equations import NormalEquations
from .store import keep_linear
from .sums_store import add_to_sums, learns, read_sums, tokens_used

log = logging.getLogger("invert_fast")

_FIRST = 1024  # tokens of use after which a lens is solved again for the first time
_FEWEST = 256  # tokens that are added to what is on disk: fewer might be read out of the sums
_ADDED = 4  # while in use, whenever there are so many times fewer than are on disk
_ENOUGH = 100  # tokens per number of a state, from where on more of them change nothing
_AT_ONCE = 1024  # tokens whose products are taken at once


class Sharpener:
    """What one process has found for the linear lens of a model and layer. used: tokens of use in the sums on disk."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, seed: int):
        self.decoder, self.vocabulary, self.seed = decoder, vocabulary, seed
        self.used = tokens_used(decoder, seed)
        self.fresh: NormalEquations | None = None
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting = 0

    @property
    def teachable(self) -> bool:
        return self.used is not None and self.used < _ENOUGH * self.decoder.width

    def learn(self, ids: Tensor, states: Tensor, before: Tensor) -> None:
        """Certified tokens `ids [n]`, their states and those before them `[n, D]`."""
        if not len(ids):
            return
        self._rows.append((ids, states, before))
        self._waiting += len(ids)
        if self._waiting >= _AT_ONCE:
            self._add()
            assert self.fresh is not None
            if self.fresh.count >= max(_FIRST, (self.used or 0) // _ADDED):
                self._store()

    def keep(self) -> None:
        """Add to what is on disk, if it is worth it: at the end of a run."""
        if self._waiting + (self.fresh.count if self.fresh else 0) >= _FEWEST:
            self._add()
            self._store()

    def _add(self) -> None:
        if not self._rows:
            return
        ids, states, before = (torch.cat(column) for column in zip(*self._rows, strict=True))
        rows = self.vocabulary.embedding[self.vocabulary.representative[ids]]
        if self.fresh is None:
            self.fresh = NormalEquations(rows.shape[1], states.shape[1], states.shape[1] + 1, rows.device)
        self.fresh.add(rows, states, before, product=torch.float32)
        self._rows, self._waiting = [], 0

    def _store(self) -> None:
        assert self.fresh is not None
        self.used = add_to_sums(self.decoder, self.seed, self.fresh)
        self.fresh = None

    def latest(self, lens: LinearLens) -> LinearLens:
        """The lens, or a sharper one, if there was so much use that it should be solved again."""
        if not self.teachable or self.used is None or self.used < max(_FIRST, 2 * lens.used):
            return lens
        found = read_sums(self.decoder, self.vocabulary, self.seed)
        if found is None:
            self.used = None
            return lens
        sums, used = found
        sharper = solved_again(lens, sums, used)
        if sharper is None:
            log.warning(
                "what use added to the linear lens of %s cannot be solved: fit it again", self.decoder.layer.name
            )
            self.used = None
            return lens
        self.used = used
        log.info("the linear lens of %s learned from %d tokens of use", self.decoder.layer.name, self.used)
        keep_linear(sharper, self.decoder, self.seed)
        return sharper


def solved_again(lens: LinearLens, sums: NormalEquations, used: int) -> LinearLens | None:
    """The same lens but for what comes from these sums; None where they make no sense."""
    try:
        rest = sums.solve()
    except RuntimeError:  # as what PyTorch raises for a singular matrix is
        return None
    if not all(bool(tensor.isfinite().all()) for tensor in rest):
        return None
    rank = lens.rank if wide(sums.count, sums.width) else None
    if rank is not None:
        rest = narrowed(lens.vocabulary.embedding, *rest, rank)
    parts = {name: (part.project, part.gram) for name, part in lens.parts.items()}
    energies = {name: part.energy for name, part in lens.parts.items()}
    old, parts["rest"] = parts["rest"], rest
    del energies["rest"]
    sharper = LinearLens(lens.vocabulary, parts, lens.accuracy, lens.repair, energies)
    sharper.prior, sharper.used, sharper.rank = lens.prior, used, rank
    if lens.metric is not None:  # of the lens's part and the prior's
        sharper.list_by(lens.metric - old[1] + parts["rest"][1])
    return sharper


def forget(decoder: Decoder) -> None:
    """A lens was fitted anew: what was found for the one before is in its texts no more."""
    _of.pop(decoder, None)


_of: WeakKeyDictionary[Decoder, dict[int, Sharpener]] = WeakKeyDictionary()


def sharpener_of(decoder: Decoder, vocabulary: Vocabulary, lens: object, seed: int) -> Sharpener | None:
    """The one of this process; None for a lens that is not linear, or drafts too well to gain from it."""
    if not isinstance(lens, LinearLens) or not learns(lens.accuracy):
        return None
    kept = _of.setdefault(decoder, {})
    if seed not in kept:
        kept[seed] = Sharpener(decoder, vocabulary, seed)
    return kept[seed]
