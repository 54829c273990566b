"""Lenses map states to token scores for whole texts at once. A lens can only propose: it never makes a result wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .base import Lens
    from .choose import choose_lens, forget
    from .estimate import EstimateLens
    from .learned import LearnedLens
    from .linear import LinearLens
    from .names import LENSES
    from .outside import LensMaker
    from .settings import Fit, FitReport
    from .train import fit_learned, fit_linear_again

__all__ = [
    "LENSES",
    "EstimateLens",
    "Fit",
    "FitReport",
    "LearnedLens",
    "Lens",
    "LensMaker",
    "LinearLens",
    "choose_lens",
    "fit_learned",
    "fit_linear_again",
    "forget",
]

__getattr__ = exporting(
    __name__,
    dict.fromkeys(("choose_lens", "forget"), f"{__name__}.choose")
    | {"LENSES": f"{__name__}.names", "LensMaker": f"{__name__}.outside"}
    | dict.fromkeys(("Fit", "FitReport"), f"{__name__}.settings")
    | dict.fromkeys(("fit_learned", "fit_linear_again"), f"{__name__}.train")
    | {"EstimateLens": f"{__name__}.estimate", "Lens": f"{__name__}.base"}
    | {"LearnedLens": f"{__name__}.learned", "LinearLens": f"{__name__}.linear"},
)
