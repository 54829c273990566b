"""Which lens a strategy drafts with: by what exists and what it measured, unless the user names one, or brings it."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..types import InputError
from . import sharpen
from .base import Lens
from .linear import LinearLens
from .names import LENSES, OWN
from .outside import LensMaker, lens_from_outside
from .sharpen import sharpener_of
from .store import learned_lens, linear_lens

log = logging.getLogger("invert_fast")

_read: WeakKeyDictionary[Decoder, dict[tuple, Lens]] = WeakKeyDictionary()  # once a process


def choose_lens(
    decoder: Decoder,
    vocabulary: Vocabulary,
    kind: str | Lens | LensMaker = "auto",
    states_dtype: str = "any",
    seed: int = 0,
) -> Lens:
    """The lens for states of this precision: `linear` (fitted now, in seconds, if it never was), `learned` (InputError
    if none was fitted) or `auto`: the learned one if it exists and drafts better; or one from outside, which `auto`
    never takes, see `lens_from_outside`. Made once a process, what is handed in too."""
    if isinstance(kind, str) and kind not in LENSES.names():
        raise InputError(f"lens '{kind}' is unknown, expected one of {', '.join(LENSES.names())}")
    if not (isinstance(kind, str) and kind in OWN):
        return lens_from_outside(kind, decoder, vocabulary, states_dtype)
    kept = _read.setdefault(decoder, {})
    key = kind, states_dtype, seed
    if key not in kept:
        kept[key] = _chosen(decoder, vocabulary, kind, states_dtype, seed)
    lens, sharpener = kept[key], sharpener_of(decoder, vocabulary, kept[key], seed)
    if sharpener is not None and isinstance(lens, LinearLens):
        kept[key] = sharpener.latest(lens)
    return kept[key]


def forget(decoder: Decoder) -> None:
    """Look again: a lens was fitted."""
    _read.pop(decoder, None)
    sharpen.forget(decoder)


def _chosen(decoder: Decoder, vocabulary: Vocabulary, kind: str, states_dtype: str, seed: int) -> Lens:
    if kind != "linear":
        learned = learned_lens(decoder, vocabulary, states_dtype)
        if learned is not None and (kind == "learned" or learned.pays):
            log.info("drafting with the learned lens (%.2f %% right when fitted)", 100 * learned.accuracy)
            return learned
        if kind == "learned":
            raise InputError(
                f"no learned lens of {decoder.fingerprint()}, {decoder.layer.name}, was fitted: run `invert-fast fit` "
                "(Inverter.fit), or use the linear lens"
            )
    return linear_lens(decoder, vocabulary, seed)
