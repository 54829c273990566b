"""Lenses of other packages: found by entry point or handed in. Whatever they give is looked at before it is used.

A lens can only propose. One that is wrong costs repairs and no more: so what is looked at here is what would break the
search, ids that no vocabulary has, and numbers that are none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..ops.best_two import LISTED
from ..types import InputError
from .base import Lens
from .names import LENSES

LensMaker = Callable[[Decoder, Vocabulary, str], Lens]
"""`(decoder, vocabulary, states_dtype) → Lens`: of one model and layer, for states stored in that precision."""
_MEMBERS = (
    *("kind", "vocabulary", "accuracy", "repair", "prior", "proxies", "best", "draft", "lists", "row_lists", "scores"),
    *("change_scores", "change_proxies", "row_bias"),
)


def lens_from_outside(
    given: str | Lens | LensMaker, decoder: Decoder, vocabulary: Vocabulary, states_dtype: str
) -> Lens:
    """By the name of an entry point, or a lens or what makes one as handed in; made once for a decoder. Raises
    InputError for what is none, and for one that was made for another vocabulary."""
    # with the decoder and not beside it: a lens may hold its decoder, and both are to go together
    kept: dict[Any, tuple[Any, Lens]] = decoder.__dict__.setdefault("_lenses_from_outside", {})
    key = given if isinstance(given, str) else id(given), states_dtype
    if key not in kept:
        kept[key] = given, _made(given, decoder, vocabulary, states_dtype)  # what is kept keeps its id
    return kept[key][1]


def _made(given: str | Lens | LensMaker, decoder: Decoder, vocabulary: Vocabulary, states_dtype: str) -> Lens:
    lens: Any
    if isinstance(given, str):
        lens, said = LENSES.make(given, decoder, vocabulary, states_dtype), LENSES.said(given)
    elif hasattr(given, "proxies") and not isinstance(given, type):
        lens, said = given, f"the lens {type(given).__name__}"
    elif callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        lens, said = cast(LensMaker, given)(decoder, vocabulary, states_dtype), f"the lens {name}"
    else:
        raise InputError(f"a lens is a {type(given).__name__}, expected a name, a Lens, or what makes one")
    if missing := [name for name in _MEMBERS if not hasattr(lens, name)]:
        raise InputError(f"{said} has no {', '.join(missing)}, expected what invert_fast.extend.Lens has")
    theirs = getattr(lens.vocabulary, "size", None)
    if theirs != vocabulary.size:
        raise InputError(f"{said} is of {theirs} tokens, expected the {vocabulary.size} of this model")
    return cast(Lens, _Outside(lens, said, vocabulary))


class _Outside:
    """A lens, and a look at what it gives."""

    def __init__(self, lens: Lens, said: str, vocabulary: Vocabulary):
        self.lens, self._said = lens, said
        self._size, self._width = vocabulary.size, vocabulary.embedding.shape[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lens, name)

    def proxies(self, hidden: Tensor) -> Tensor:
        return self._numbers("proxies", self.lens.proxies(hidden), (*hidden.shape[:2], self._width))

    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        ids, leads = self.lens.best(proxies)
        return self._ids("best", ids, proxies.shape[:-1], 0), leads

    def draft(self, hidden: Tensor) -> Tensor:
        return self._ids("draft", self.lens.draft(hidden), hidden.shape[:2], 0)

    def lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        ids, scores = self.lens.lists(proxies)
        return self._ids("lists", ids, (*proxies.shape[:-1], LISTED), -1), scores

    def row_lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        ids, scores = self.lens.row_lists(proxies)
        return self._ids("row_lists", ids, (*proxies.shape[:-1], LISTED), -1), scores

    def _numbers(self, name: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(found.shape) != tuple(shape) or not found.is_floating_point():
            raise self._wrong(name, f"{list(found.shape)} {found.dtype}", f"floats {list(shape)}")
        if not bool(found.isfinite().all()):
            raise self._wrong(name, "NaN or infinity", "numbers")
        return found

    def _ids(self, name: str, found: Tensor, shape: tuple[int, ...], least: int) -> Tensor:
        if tuple(found.shape) != tuple(shape) or found.dtype != torch.int64:
            raise self._wrong(name, f"{list(found.shape)} {found.dtype}", f"int64 {list(shape)}")
        if found.numel() and not least <= int(found.min()) <= int(found.max()) < self._size:
            raise self._wrong(name, f"ids {int(found.min())} to {int(found.max())}", f"{least} to {self._size - 1}")
        return found

    def _wrong(self, name: str, got: str, wanted: str) -> InputError:
        return InputError(f"{self._said} gives {got} for `{name}`, expected {wanted}: mend it, or leave it out")
