"""`adam_step`: one clipped, scheduled Adam step of every active lane, in place. csrc/adam.cpp."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .native import _C, address, rows
from .table import backend as backend_of


def adam_step(
    proxy: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    active: Tensor,
    *,
    backend: str = "auto",
    **settings: Any,
) -> None:
    """One clipped, scheduled Adam step of all active lanes in place, see `kernels.reference.adam_step`."""
    same = all(t.shape == proxy.shape and t.dtype == torch.float32 for t in (proxy, grad, exp_avg, exp_avg_sq))
    counted = step.shape == proxy.shape[:1] and step.dtype == torch.int64
    chosen = active.shape == proxy.shape[:1] and active.dtype == torch.bool
    if proxy.dim() != 2 or not (same and counted and chosen):
        raise ValueError(
            f"adam_step of proxies {list(proxy.shape)} {proxy.dtype}, gradients {list(grad.shape)} {grad.dtype}, "
            f"moments {list(exp_avg.shape)} and {list(exp_avg_sq.shape)}, steps {list(step.shape)} {step.dtype}, "
            f"active {list(active.shape)} {active.dtype}: expected four fp32 [B, D], int64 [B] and bool [B]"
        )
    in_place = {"proxy": proxy, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "step": step}
    if strided := [name for name, table in in_place.items() if table.stride(-1) != 1 and table.shape[-1] > 1]:
        raise ValueError(f"adam_step in place on {' and '.join(strided)} with gaps in the rows: expected stride 1")
    call = backend_of("adam_step", backend, proxy.device)
    call(proxy, rows(grad), exp_avg, exp_avg_sq, step, active.contiguous(), **settings)


def cpp(
    proxy: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    active: Tensor,
    *,
    lr: float,
    total_steps: int,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """csrc/adam.cpp: one pass over the lanes, no temporaries."""
    B, D = proxy.shape
    _C.adam_step(
        *(address(t) for t in (proxy, grad, exp_avg, exp_avg_sq)),
        *(address(step, torch.long), address(active, torch.bool)),
        B,
        D,
        *(t.stride(0) for t in (proxy, grad, exp_avg, exp_avg_sq)),
        lr,
        total_steps,
        math.inf if clip is None else clip,
        weight_decay,
        *betas,
        eps,
        torch.get_num_threads(),
    )
