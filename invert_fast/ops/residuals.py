"""`residuals`: how far candidates' states are from their lane's target. csrc/residuals.cpp, csrc/cuda/residuals.cu."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import native
from .native import _C, NATIVE_DTYPES, _cuda, address, rows
from .table import backend as backend_of


def residuals(predictions: Tensor, targets: Tensor, *, backend: str = "auto") -> Tensor:
    """Relative L2 distance of every candidate's state to its lane's target, `[B, C, D], [B, D] → [B, C]` fp32."""
    if predictions.dim() != 3 or targets.shape != (predictions.shape[0], predictions.shape[2]):
        raise ValueError(
            f"residuals of predictions {list(predictions.shape)} and targets {list(targets.shape)}: "
            "expected [B, C, D] and [B, D]"
        )
    plain = predictions.dtype in NATIVE_DTYPES and targets.dtype in NATIVE_DTYPES
    if backend in ("auto", "own") and (predictions.requires_grad or not plain):
        backend = "reference"
    return backend_of("residuals", backend, predictions.device)(predictions, targets)


def cpp(predictions: Tensor, targets: Tensor) -> Tensor:
    """csrc/residuals.cpp"""
    return _call(_C.residuals, predictions, targets, torch.get_num_threads())


def cuda(predictions: Tensor, targets: Tensor) -> Tensor:
    """csrc/cuda/residuals.cu"""
    stream = native.stream(predictions, targets)
    return _call(_cuda.residuals, predictions, targets, stream)


def _call(call: Callable, predictions: Tensor, targets: Tensor, last: int) -> Tensor:
    """One pass over the predictions, no `[B, C, D]` temporary. last: the argument that differs, threads or a stream."""
    B, C, D = predictions.shape
    predictions, targets = rows(predictions), rows(targets)
    out = torch.empty(B, C, dtype=torch.float32, device=predictions.device)
    call(
        address(predictions, *NATIVE_DTYPES),
        address(targets, *NATIVE_DTYPES),
        address(out),
        B,
        C,
        D,
        predictions.stride(0),
        predictions.stride(1),
        targets.stride(0),
        predictions.dtype == torch.bfloat16,
        targets.dtype == torch.bfloat16,
        last,
    )
    return out
