"""Fits of a learned lens that are short enough for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from invert_fast import Inverter
from invert_fast.lens import Fit, FitReport, choose_lens

from ..families import make

SHORT = Fit(width=32, layers=1, steps=60)
_left: dict[tuple, tuple[FitReport, dict[str, bytes]]] = {}


def fitted(family: str = "llama", layer: int | str = -1, fit: Fit = SHORT, **options):
    """A decoder of its own, with the lens that was fitted to it."""
    inv = Inverter(make(family), layer=layer)
    report = inv.fit("learned", fit, **options)
    return inv, report, choose_lens(inv.decoder, inv.vocabulary, "learned", fit.states_dtype)


def fitted_once(folder: Path, family: str = "llama", layer: int | str = -1, fit: Fit = SHORT):
    """As `fitted`, for tests of what comes after a fit. Into `folder`, the empty one of `small_fits`, goes what the
    first such fit left: equal fits leave the same (test_fit.py)."""
    assert not list(folder.iterdir()), "the cache folder of this test is in use"
    if (family, layer, fit) not in _left:
        report = fitted(family, layer, fit)[1]
        _left[family, layer, fit] = report, {file.name: file.read_bytes() for file in folder.iterdir()}
    report, files = _left[family, layer, fit]
    for name, data in files.items():
        (folder / name).write_bytes(data)
    inv, path = Inverter(make(family), layer=layer), str(folder / Path(report.path or "").name)
    return inv, replace(report, path=path), choose_lens(inv.decoder, inv.vocabulary, "learned", fit.states_dtype)
