"""How far from the formula an Adam step may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..limits import close


def sizes(
    tables: Sequence[Tensor],
    step: Tensor,
    *,
    lr: float,
    total_steps: int,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scales of proxy, exp_avg and exp_avg_sq after one step from `tables`: proxy, grad, exp_avg, exp_avg_sq.

    A step has length lr · m̂ / √ŝ: off by as much of itself as m is, and half as much as s is. The rate falls on a
    cosine, off by a share of lr whatever is left of it.
    """
    proxy, grad, mean, square = (t.cpu().double() for t in tables)
    norm = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
    shrink = torch.ones_like(norm) if clip is None else (clip / (norm + 1e-6)).clamp_max(1.0)
    signed, whole = (grad * shrink + weight_decay * proxy), (grad.abs() * shrink + weight_decay * proxy.abs())
    taken = step.cpu().double()[:, None] + 1
    mean_size = betas[0] * mean.abs() + (1 - betas[0]) * whole
    square_size = betas[1] * square + (1 - betas[1]) * whole.square()
    true = betas[1] * square + (1 - betas[1]) * signed.square()
    ratio = mean_size / (1 - betas[0] ** taken) / ((true / (1 - betas[1] ** taken)).sqrt() + eps)
    loose = 1 + square_size / true.clamp_min(1e-300)
    return proxy.abs() + lr * ratio * loose, mean_size, square_size


def check(
    found: Sequence[Tensor], wanted: Sequence[Tensor], before: Sequence[Tensor], step: Tensor, **settings
) -> None:
    """proxy, exp_avg and exp_avg_sq after a step from the four tables `before`."""
    __tracebackhide__ = True
    terms = 2 * found[0].shape[-1] + 24  # the norm, which what is squared later holds twice, and a few steps
    for ours, theirs, scale in zip(found, wanted, sizes(before, step, **settings), strict=True):
        close(ours, theirs, scale=scale, terms=terms)
