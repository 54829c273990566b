"""Defences of hidden states, what they cost the model, and what they leave to an attacker.

from invert_fast.defences import parse_defence
defended = parse_defence("gaussian:0.05").apply(states, seed=1)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .attack import Attacked, attacked
    from .base import Defence
    from .coarse import DropRows, Quantise, TopK
    from .noise import Gaussian, Laplace, Private
    from .rotation import Rotation, rotation_from_pairs
    from .spec import parse_defence
    from .utility import Utility, next_token_losses, utility_of

_PLACES = {
    "attack": ("Attacked", "attacked"),
    "base": ("Defence",),
    "coarse": ("DropRows", "Quantise", "TopK"),
    "noise": ("Gaussian", "Laplace", "Private"),
    "rotation": ("Rotation", "rotation_from_pairs"),
    "spec": ("parse_defence",),
    "utility": ("Utility", "next_token_losses", "utility_of"),
}
__all__ = [
    "Attacked",
    "Defence",
    "DropRows",
    "Gaussian",
    "Laplace",
    "Private",
    "Quantise",
    "Rotation",
    "TopK",
    "Utility",
    "attacked",
    "next_token_losses",
    "parse_defence",
    "rotation_from_pairs",
    "utility_of",
]

__getattr__ = exporting(__name__, {name: f"{__name__}.{file}" for file, names in _PLACES.items() for name in names})
