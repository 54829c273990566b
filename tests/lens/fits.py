"""Fits of a learned lens that are short enough for a test."""

from __future__ import annotations

from invert_fast import Inverter
from invert_fast.lens import Fit, choose_lens

from ..families import make

SHORT = Fit(width=32, layers=1, steps=60)


def fitted(family: str = "llama", layer: int | str = -1, fit: Fit = SHORT, **options):
    """A decoder of its own, with the lens that was fitted to it."""
    inv = Inverter(make(family), layer=layer)
    report = inv.fit("learned", fit, **options)
    return inv, report, choose_lens(inv.decoder, inv.vocabulary, "learned", fit.states_dtype)
