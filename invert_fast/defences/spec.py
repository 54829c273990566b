"""Defences by name, as the command line writes them."""

from __future__ import annotations

from collections.abc import Callable

from ..types import InputError
from .base import Defence
from .coarse import DropRows, Quantise, TopK
from .noise import Gaussian, Laplace, Private
from .rotation import Rotation

# name → what makes it of its numbers, how many these are at least, and how it is written
_MADE: dict[str, tuple[Callable[..., Defence], int, tuple[type, ...], str]] = {
    "gaussian": (Gaussian, 1, (float,), "gaussian:0.05"),
    "laplace": (Laplace, 1, (float,), "laplace:0.05"),
    "private": (Private, 3, (float, float, float), "private:8:4:1e-5 (clip, epsilon, delta)"),
    "quantise": (Quantise, 1, (int,), "quantise:4 (bits)"),
    "topk": (TopK, 1, (float,), "topk:64 or topk:0.25"),
    "rotation": (Rotation, 0, (int,), "rotation:7 (key)"),
    "drop": (DropRows, 1, (float,), "drop:0.1"),
}
NAMES = tuple(_MADE)
WRITTEN = ", ".join(how for *_, how in _MADE.values())


def parse_defence(text: str) -> Defence:
    """`"gaussian:0.05"` → `Gaussian(0.05)`. Raises InputError that says what was wanted for any other text."""
    name, *parts = text.strip().split(":")
    name = {"quantize": "quantise"}.get(name, name)
    if name not in _MADE:
        raise InputError(f"defence '{text}' is unknown, expected one of {WRITTEN}")
    made, least, kinds, how = _MADE[name]
    try:
        if not least <= len(parts) <= len(kinds):
            raise ValueError
        numbers = [kind(part) for kind, part in zip(kinds, parts, strict=False)]
    except ValueError:
        raise InputError(f"defence '{text}' has other strengths than {name} takes, expected {how}") from None
    return made(*numbers)
