"""`residuals` in Triton: both norms in one pass over the states, no `[B, C, D]` temporary."""

# pyright takes the launch of a kernel for a call of the function that describes it
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Closest


@triton.jit
def residual_rows(
    predictions,
    targets,
    out,
    C,
    prediction_stride_b,
    prediction_stride_c,
    target_stride_b,
    D: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """out[b, c] = ‖predictions[b, c] − targets[b]‖ / max(‖targets[b]‖, 1e-30)"""
    b, c = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    distance = tl.zeros((BC, BD), tl.float32)
    scale = tl.zeros((BD,), tl.float32)
    rows = predictions + b.to(tl.int64) * prediction_stride_b + c.to(tl.int64)[:, None] * prediction_stride_c
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        target = tl.load(targets + b.to(tl.int64) * target_stride_b + d, mask=d < D, other=0.0).to(tl.float32)
        there = (c < C)[:, None] & (d < D)[None, :]
        difference = tl.load(rows + d[None, :], mask=there, other=0.0).to(tl.float32) - target[None, :]
        distance += difference * difference
        scale += target * target
    norm = tl.maximum(tl.sqrt(tl.sum(scale, 0)), 1e-30)
    tl.store(out + b.to(tl.int64) * C + c, tl.sqrt(tl.sum(distance, 1)) / norm, mask=c < C)


@triton.jit
def closest_rows(
    predictions,
    targets,
    tolerance,
    residual,
    squared,
    best,
    runner_up,
    first,
    C,
    prediction_stride_b,
    prediction_stride_c,
    target_stride_b,
    D: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """One lane a program: what it keeps of its candidates is decided while they pass by."""
    b = tl.program_id(0).to(tl.int64)
    limit = tl.load(tolerance + b)
    none = (0x7F800000 << 32) | 0x7FFFFFFF  # infinitely far
    nearest, second = tl.full((), none, tl.int64), tl.full((), none, tl.int64)
    lowest = tl.full((), 0x7FFFFFFF, tl.int32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        distance = tl.zeros((BC, BD), tl.float32)
        scale = tl.zeros((BD,), tl.float32)
        rows = predictions + b * prediction_stride_b + c.to(tl.int64)[:, None] * prediction_stride_c
        for at in range(0, D, BD):
            d = at + tl.arange(0, BD)
            target = tl.load(targets + b * target_stride_b + d, mask=d < D, other=0.0).to(tl.float32)
            there = (c < C)[:, None] & (d < D)[None, :]
            difference = tl.load(rows + d[None, :], mask=there, other=0.0).to(tl.float32) - target[None, :]
            distance += difference * difference
            scale += target * target
        total = tl.sum(distance, 1)
        relative = tl.sqrt(total) / tl.maximum(tl.sqrt(tl.sum(scale, 0)), 1e-30)
        relative = tl.where((relative == relative) & (c < C), relative, float("inf"))
        tl.store(residual + b * C + c, relative, mask=c < C)
        tl.store(squared + b * C + c, total, mask=c < C)
        # The bits of a distance sort like an integer: one number that sorts by distance, then column.
        rank = (relative.to(tl.int32, bitcast=True).to(tl.int64) << 32) | c.to(tl.int64)
        here = tl.min(rank, 0)
        next_one = tl.min(tl.where(rank == here, none, rank), 0)
        second = tl.minimum(tl.minimum(second, next_one), tl.maximum(nearest, here))
        nearest = tl.minimum(nearest, here)
        within = (relative <= limit) & (relative < float("inf"))
        lowest = tl.minimum(lowest, tl.min(tl.where(within, c, 0x7FFFFFFF), 0))
    tl.store(best + b, tl.where((nearest >> 32) == 0x7F800000, -1, nearest & 0xFFFFFFFF))
    tl.store(runner_up + b, (second >> 32).to(tl.int32).to(tl.float32, bitcast=True))
    tl.store(first + b, tl.where(lowest == 0x7FFFFFFF, -1, lowest).to(tl.int64))


def closest(predictions: Tensor, targets: Tensor, tolerance: Tensor) -> Closest:
    """Contract of `reference.closest`."""
    predictions = predictions if predictions.stride(-1) == 1 else predictions.contiguous()
    targets = targets if targets.stride(-1) == 1 else targets.contiguous()
    B, C, D = predictions.shape
    table, column = {"device": predictions.device}, {"dtype": torch.long, "device": predictions.device}
    found = Closest(
        torch.empty(B, C, **table),
        torch.empty(B, C, **table),
        torch.empty(B, **column),
        torch.empty(B, **table),
        torch.empty(B, **column),
    )
    if B:
        closest_rows[(B,)](
            *(predictions, targets, tolerance.float().contiguous(), *found, C),
            *(predictions.stride(0), predictions.stride(1), targets.stride(0)),
            D=D,
            BC=8,
            BD=256,
            num_warps=4,
        )
    return found


def residuals(predictions: Tensor, targets: Tensor) -> Tensor:
    """Contract of `reference.residuals`."""
    predictions = predictions if predictions.stride(-1) == 1 else predictions.contiguous()
    targets = targets if targets.stride(-1) == 1 else targets.contiguous()
    B, C, D = predictions.shape
    out = torch.empty(B, C, dtype=torch.float32, device=predictions.device)
    if out.numel():
        residual_rows[(B, triton.cdiv(C, 8))](  # B first: a grid is at most 65,535 wide in its second dimension
            predictions,
            targets,
            out,
            C,
            predictions.stride(0),
            predictions.stride(1),
            targets.stride(0),
            D=D,
            BC=8,
            BD=256,
            num_warps=4,
        )
    return out
