"""Lenses map states to token scores for whole texts at once. A lens can only propose: it never makes a result wrong."""

from .linear import LinearLens, load_or_fit

__all__ = ["LinearLens", "load_or_fit"]
