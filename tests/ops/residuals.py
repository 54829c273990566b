"""`residuals` in float64, and how far from it a kernel may be."""

from __future__ import annotations

from torch import Tensor

from ..limits import close


def oracle(predictions: Tensor, targets: Tensor) -> Tensor:
    """`[B, C, D], [B, D] → [B, C]`"""
    predictions, targets = predictions.detach().cpu().double(), targets.detach().cpu().double()
    return (predictions - targets[:, None]).norm(dim=-1) / targets.norm(dim=-1).clamp_min(1e-30)[:, None]


def check(found: Tensor, predictions: Tensor, targets: Tensor, equal_nan: bool = False) -> None:
    """A sum of squares has no cancellation: each answer is its own scale, whatever precision was read."""
    __tracebackhide__ = True
    wanted = oracle(predictions, targets)
    close(found, wanted, scale=wanted, terms=predictions.shape[-1] + 8, equal_nan=equal_nan)
