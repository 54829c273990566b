"""Lenses map states to token scores for whole texts at once. A lens can only propose: it never makes a result wrong."""

from .choose import LENSES, choose_lens, forget
from .learned import LearnedLens
from .linear import LinearLens
from .second_look import doubtful, look_again
from .train import Fit, FitReport, fit_learned, fit_linear_again

__all__ = [
    "LENSES",
    "Fit",
    "FitReport",
    "LearnedLens",
    "LinearLens",
    "choose_lens",
    "doubtful",
    "fit_learned",
    "fit_linear_again",
    "forget",
    "look_again",
]
