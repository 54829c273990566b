"""csrc/fan_out.cpp as a differentiable op: a few tokens a lane, each alone after the lane's prefix.

An optimisation step runs it once a layer in both directions, and at that size PyTorch's own attention spends its time
on masks, copies and bookkeeping; here the prefix is read where it lies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .native import _C, address
from .recording import define, is_recording

GIVEN = (
    "Tensor query, Tensor key, Tensor value, Tensor? prefix_key, Tensor? prefix_value, Tensor? lengths, Tensor? slots, "
    "float scale, int? window"
)  # of an attention, as operators are declared
FEW = 8  # tokens a lane; for many, one matrix product over all of them is faster


def available() -> bool:
    """Whether the library was built."""
    return _C is not None


def fits(query: Tensor, causal: bool, softcap: float | None) -> bool:
    """Whether `attention` below computes this case of `prefix_attention`."""
    alone = not causal or query.shape[2] == 1
    few = query.shape[2] <= FEW or is_recording()  # a recording stands for any number of tokens
    return _C is not None and alone and few and query.dtype == torch.float32 and softcap is None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None,
    prefix_value: Tensor | None,
    lengths: Tensor | None,
    slots: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Contract of `kernels.reference.prefix_attention` with causal=False and no softcap. The prefix has no gradient."""
    given = (query, key, value, prefix_key, prefix_value, lengths, slots, scale, window)
    return _FanOut.apply(*given)  # type: ignore[return-value]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None,
    prefix_value: Tensor | None,
    lengths: Tensor | None,
    slots: Tensor | None,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """(out `[B, N, Hq, d]`, weights `[B, Hq, N, L + 1]`)."""
    call, kept = arguments(query, key, value, prefix_key, prefix_value, lengths, slots, scale, window)
    B, Hq, N, d = query.shape
    out, weights = query.new_empty(B, N, Hq, d), query.new_empty(B, Hq, N, call[3][5] + 1)
    _C.fan_out_forward(*call, address(out), address(weights), torch.get_num_threads())
    del kept
    return out, weights


def _backward(grad: Tensor, weights: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by query, key and value; given: the arguments of `_forward`."""
    call, kept = arguments(*given)
    grad = grad.transpose(1, 2)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    query, key, value = (torch.empty(t.shape, dtype=t.dtype) for t in kept[:3])
    pointers = [address(t) for t in (query, key, value)]
    _C.fan_out_backward(*call, _view(grad), address(weights), pointers, torch.get_num_threads())
    return query, key, value


def arguments(query, key, value, prefix_key, prefix_value, lengths, slots, scale, window):
    """The arguments as the library takes them, and the tensors that must live until it returns."""
    B, Hq, N, d = query.shape
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    longest = 0
    if prefix_key is None:
        prefix_key = prefix_value = query  # not looked at
        lengths = slots = None
    else:
        longest = prefix_key.shape[2]
        if prefix_key.stride(-1) != 1 or prefix_value.stride(-1) != 1:
            prefix_key, prefix_value = prefix_key.contiguous(), prefix_value.contiguous()
        lengths = lengths.contiguous()
        slots = None if slots is None else slots.contiguous()
    kept = (query, key, value, prefix_key, prefix_value, lengths, slots)
    call = (
        [_view(t) for t in kept[:5]],
        0 if lengths is None else address(lengths, torch.long),
        0 if slots is None else address(slots, torch.long),
        (B, Hq, key.shape[1], N, d, longest),
        window or 0,
        scale,
    )
    return call, kept


def _view(tensor: Tensor) -> tuple[int, int, int, int]:
    return address(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)


class _FanOut(torch.autograd.Function):
    """By way of the operators below while a pass is recorded, else directly."""

    @staticmethod
    def forward(ctx, *given):
        out, ctx.weights = (_fan_out if is_recording() else _forward)(*given)
        ctx.given = given  # plain attributes: no version check, nothing to free
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        grads = (_fan_out_backward if is_recording() else _backward)(grad, ctx.weights, *ctx.given)
        return *grads, *[None] * 6


_fan_out = define(f"fan_out({GIVEN}) -> (Tensor, Tensor)", _forward)
_fan_out_backward = define(
    f"fan_out_backward(Tensor grad, Tensor weights, {GIVEN}) -> (Tensor, Tensor, Tensor)", _backward
)
