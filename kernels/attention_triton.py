"""`prefix_attention` in Triton: each lane's prefix is read where it lies, once for all queries of a group of heads.

The rows of a program are the K queries of all heads that share one key head. The softmax runs online: the greatest
logit so far m, Σ exp(logit − m) and Σ exp(logit − m)·v are all it keeps; the backward pass makes the weights again from
the logarithm of their sum. Products are in full fp32, of whatever type is stored.
"""

# pyright takes the launch of a kernel for a call of the function that describes it
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention_tiles import HIDDEN, add_keys, capped, load_rows, mixture, slopes, uncapped


def tiles(rows: int, head: int) -> dict[str, int]:
    """Queries and keys in flight, the warps that hold them, and how many blocks of keys are loaded at once.

    Products of 16 rows would be wasted on one, and do not fit with very wide heads. No spills, 48 KiB of shared memory.
    """
    wide = head > 64
    block = 1 if rows == 1 else 4 if rows <= 4 or head > 128 else 16
    return {
        "BQ": block,
        "BK": 16 if wide else 32,
        "num_warps": 8 if wide and block > 1 else 4,
        "num_stages": 1 if wide else 2,
    }


def key_tiles(head: int) -> dict[str, int]:
    """The same for `key_gradients`."""
    block = 16 if head <= 128 else 4
    return {"BQ": block, "BK": block, "num_warps": 8, "num_stages": 1}


@triton.jit
def attend(
    queries, keys, values, prefix_keys, prefix_values, lengths, slots, out, sums,
    scale, softcap, window, K,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t, p_stride_s, p_stride_h, p_stride_t,
    HKV: tl.constexpr, GROUPS: tl.constexpr, HEAD: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PREFIX: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """out `[B, K, Hq, d]`, sums `[B, Hq, K]`: the logarithm of Σ exp(logit) of each query."""
    DOT: tl.constexpr = BQ >= 16
    b, own = (tl.program_id(0) // HKV).to(tl.int64), tl.program_id(0) % HKV
    row, d = tl.program_id(1) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    there = row < GROUPS * K
    i, head = row % K, own * GROUPS + row // K
    q_mask = there[:, None] & (d < HEAD)[None, :]
    q_at = b * q_stride_b + head[:, None] * q_stride_h + i[:, None] * q_stride_t + d[None, :]
    q = tl.load(queries + q_at, mask=q_mask, other=0.0).to(tl.float32)
    own_keys, own_values = keys + b * k_stride_b + own * k_stride_h, values + b * k_stride_b + own * k_stride_h
    most = tl.full((BQ,), HIDDEN, tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    mixed = tl.zeros((BQ, BD), tl.float32)
    if PREFIX:
        length = tl.load(lengths + b).to(tl.int32)
        storage = tl.load(slots + b) if SLOTS else b
        lane_keys = prefix_keys + storage * p_stride_s + own * p_stride_h
        lane_values = prefix_values + storage * p_stride_s + own * p_stride_h
        position = length + i if CAUSAL else length + i * 0
        first = tl.maximum(length - window + 1, 0) if WINDOW else length * 0
        for start in range(first, length, BK):
            j = start + tl.arange(0, BK)
            k = load_rows(lane_keys, j, p_stride_t, j < length, d, HEAD)
            v = load_rows(lane_values, j, p_stride_t, j < length, d, HEAD)
            seen = tl.broadcast_to((j < length)[None, :], (BQ, BK))
            if WINDOW:
                seen = seen & (position[:, None] - j[None, :] < window)
            most, total, mixed = add_keys(q, k, v, seen, most, total, mixed, scale, softcap, SOFTCAP, DOT)
    if CAUSAL:
        last = tl.max(tl.where(there, i, 0), 0) + 1
        for start in range(0, last, BK):
            j = start + tl.arange(0, BK)
            k = load_rows(own_keys, j, k_stride_t, j < K, d, HEAD)
            v = load_rows(own_values, j, k_stride_t, j < K, d, HEAD)
            seen = (j[None, :] <= i[:, None]) & (j < K)[None, :]
            if WINDOW:
                seen = seen & (i[:, None] - j[None, :] < window)
            most, total, mixed = add_keys(q, k, v, seen, most, total, mixed, scale, softcap, SOFTCAP, DOT)
    else:
        k = load_rows(own_keys, i, k_stride_t, there, d, HEAD)
        v = load_rows(own_values, i, k_stride_t, there, d, HEAD)
        logit = capped(tl.sum(q * k, 1) * scale, softcap, SOFTCAP)
        higher = tl.maximum(most, logit)
        shrink, weight = tl.exp(most - higher), tl.exp(logit - higher)
        total = total * shrink + weight
        mixed = mixed * shrink[:, None] + weight[:, None] * v
        most = higher
    total = tl.maximum(total, 1.0)  # as it is: a row weighs its greatest logit with 1; rows that are not there have 0
    out_at = ((b * K + i) * (HKV * GROUPS) + head)[:, None] * HEAD + d[None, :]
    tl.store(out + out_at, (mixed / total[:, None]).to(out.dtype.element_ty), mask=q_mask)
    tl.store(sums + (b * (HKV * GROUPS) + head) * K + i, most + tl.log(total), mask=there)


@triton.jit
def query_gradients(
    queries, keys, values, prefix_keys, prefix_values, lengths, slots, out, sums, grads, dq, dk, dv,
    scale, softcap, window, K,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t, p_stride_s, p_stride_h, p_stride_t,
    grad_stride_b, grad_stride_t, grad_stride_h,
    HKV: tl.constexpr, GROUPS: tl.constexpr, HEAD: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PREFIX: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """dq `[B, Hq, K, d]`; of a fan-out also dk, dv `[B, Hq, K, d]`, one part for each query head, to be added up."""
    DOT: tl.constexpr = BQ >= 16
    b, own = (tl.program_id(0) // HKV).to(tl.int64), tl.program_id(0) % HKV
    row, d = tl.program_id(1) * BQ + tl.arange(0, BQ), tl.arange(0, BD)
    there = row < GROUPS * K
    i, head = row % K, own * GROUPS + row // K
    q_mask = there[:, None] & (d < HEAD)[None, :]
    q_at = b * q_stride_b + head[:, None] * q_stride_h + i[:, None] * q_stride_t + d[None, :]
    q = tl.load(queries + q_at, mask=q_mask, other=0.0).to(tl.float32)
    grad_at = b * grad_stride_b + head[:, None] * grad_stride_h + i[:, None] * grad_stride_t + d[None, :]
    grad = tl.load(grads + grad_at, mask=q_mask, other=0.0).to(tl.float32)
    out_at = ((b * K + i) * (HKV * GROUPS) + head)[:, None] * HEAD + d[None, :]
    delta = tl.sum(grad * tl.load(out + out_at, mask=q_mask, other=0.0).to(tl.float32), 1)
    lse = tl.load(sums + (b * (HKV * GROUPS) + head) * K + i, mask=there, other=0.0)
    own_keys, own_values = keys + b * k_stride_b + own * k_stride_h, values + b * k_stride_b + own * k_stride_h
    total = tl.zeros((BQ, BD), tl.float32)
    if PREFIX:
        length = tl.load(lengths + b).to(tl.int32)
        storage = tl.load(slots + b) if SLOTS else b
        lane_keys = prefix_keys + storage * p_stride_s + own * p_stride_h
        lane_values = prefix_values + storage * p_stride_s + own * p_stride_h
        position = length + i if CAUSAL else length + i * 0
        first = tl.maximum(length - window + 1, 0) if WINDOW else length * 0
        for start in range(first, length, BK):
            j = start + tl.arange(0, BK)
            k = load_rows(lane_keys, j, p_stride_t, j < length, d, HEAD)
            v = load_rows(lane_values, j, p_stride_t, j < length, d, HEAD)
            seen = there[:, None] & (j < length)[None, :]
            if WINDOW:
                seen = seen & (position[:, None] - j[None, :] < window)
            _, slope = slopes(q, k, v, seen, grad, delta, lse, scale, softcap, SOFTCAP, DOT)
            total += mixture(slope, k, DOT)
    own_at = ((b * (HKV * GROUPS) + head) * K + i)[:, None] * HEAD + d[None, :]
    if CAUSAL:
        last = tl.max(tl.where(there, i, 0), 0) + 1
        for start in range(0, last, BK):
            j = start + tl.arange(0, BK)
            k = load_rows(own_keys, j, k_stride_t, j < K, d, HEAD)
            v = load_rows(own_values, j, k_stride_t, j < K, d, HEAD)
            seen = there[:, None] & (j[None, :] <= i[:, None]) & (j < K)[None, :]
            if WINDOW:
                seen = seen & (i[:, None] - j[None, :] < window)
            _, slope = slopes(q, k, v, seen, grad, delta, lse, scale, softcap, SOFTCAP, DOT)
            total += mixture(slope, k, DOT)
    else:
        k = load_rows(own_keys, i, k_stride_t, there, d, HEAD)
        v = load_rows(own_values, i, k_stride_t, there, d, HEAD)
        logit = capped(tl.sum(q * k, 1) * scale, softcap, SOFTCAP)
        weight = tl.exp(tl.where(there, logit - lse, 0.0))
        slope = uncapped(weight * (tl.sum(grad * v, 1) - delta), logit, softcap, SOFTCAP)
        total += slope[:, None] * k
        tl.store(dk + own_at, (slope * scale)[:, None] * q, mask=q_mask)
        tl.store(dv + own_at, weight[:, None] * grad, mask=q_mask)
    tl.store(dq + own_at, (total * scale).to(dq.dtype.element_ty), mask=q_mask)


@triton.jit
def key_gradients(
    queries, keys, values, out, sums, grads, dk, dv,
    scale, softcap, window, K,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    grad_stride_b, grad_stride_t, grad_stride_h,
    HKV: tl.constexpr, GROUPS: tl.constexpr, HEAD: tl.constexpr, BD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dk, dv `[B, Hkv, K, d]` of a draft: each key gathers from the queries that see it."""
    DOT: tl.constexpr = BQ >= 16
    b, own = (tl.program_id(0) // HKV).to(tl.int64), tl.program_id(0) % HKV
    j, d = tl.program_id(1) * BK + tl.arange(0, BK), tl.arange(0, BD)
    k = load_rows(keys + b * k_stride_b + own * k_stride_h, j, k_stride_t, j < K, d, HEAD)
    v = load_rows(values + b * k_stride_b + own * k_stride_h, j, k_stride_t, j < K, d, HEAD)
    k_total, v_total = tl.zeros((BK, BD), tl.float32), tl.zeros((BK, BD), tl.float32)
    for start in range(0, GROUPS * K, BQ):
        row = start + tl.arange(0, BQ)
        there = row < GROUPS * K
        i, head = row % K, own * GROUPS + row // K
        mask = there[:, None] & (d < HEAD)[None, :]
        q_at = b * q_stride_b + head[:, None] * q_stride_h + i[:, None] * q_stride_t + d[None, :]
        q = tl.load(queries + q_at, mask=mask, other=0.0).to(tl.float32)
        grad_at = b * grad_stride_b + head[:, None] * grad_stride_h + i[:, None] * grad_stride_t + d[None, :]
        grad = tl.load(grads + grad_at, mask=mask, other=0.0).to(tl.float32)
        out_at = ((b * K + i) * (HKV * GROUPS) + head)[:, None] * HEAD + d[None, :]
        delta = tl.sum(grad * tl.load(out + out_at, mask=mask, other=0.0).to(tl.float32), 1)
        lse = tl.load(sums + (b * (HKV * GROUPS) + head) * K + i, mask=there, other=0.0)
        seen = there[:, None] & (j[None, :] <= i[:, None]) & (j < K)[None, :]
        if WINDOW:
            seen = seen & (i[:, None] - j[None, :] < window)
        weights, slope = slopes(q, k, v, seen, grad, delta, lse, scale, softcap, SOFTCAP, DOT)
        k_total += mixture(tl.trans(slope), q, DOT)
        v_total += mixture(tl.trans(weights), grad, DOT)
    at = ((b * HKV + own) * K + j)[:, None] * HEAD + d[None, :]
    mask = (j < K)[:, None] & (d < HEAD)[None, :]
    tl.store(dk + at, (k_total * scale).to(dk.dtype.element_ty), mask=mask)
    tl.store(dv + at, v_total.to(dv.dtype.element_ty), mask=mask)


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with contiguous rows and, of several, with equal strides."""
    if all(t.stride(-1) == 1 and t.stride() == tensors[0].stride() for t in tensors):
        return tensors
    return tuple(t.contiguous() for t in tensors)


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, prefix_key, prefix_value, lengths, slots, scale, causal, window, softcap):
        B, HQ, K, head = query.shape
        groups, causal = HQ // key.shape[1], causal and K > 1  # one token alone is a fan-out of one
        prefix = prefix_key is not None and prefix_value is not None and lengths is not None
        use_slots = prefix and slots is not None
        (query,), own = _alike(query), _alike(key, value)
        stored = _alike(prefix_key, prefix_value) if prefix else (query, query)  # where there is none: not looked at
        rows = lengths.contiguous() if lengths is not None and prefix else query
        # Full precision where the gradient takes it up again: it is the difference of nearly equal numbers.
        out = torch.empty(B, K, HQ, head, dtype=torch.float32, device=query.device)
        sums = torch.empty(B, HQ, K, dtype=torch.float32, device=query.device)
        ctx.inputs = (query, *own, *stored, rows, slots.contiguous() if slots is not None and prefix else query)
        ctx.numbers = (float(scale), 1.0 if softcap is None else float(softcap), 0 if window is None else window, K)
        ctx.strides = [stride for t in (query, own[0], stored[0]) for stride in t.stride()[:3]]
        ctx.sizes = {"HKV": key.shape[1], "GROUPS": groups, "HEAD": head, "BD": max(16, triton.next_power_of_2(head))}
        ctx.sizes |= {"WINDOW": window is not None, "SOFTCAP": softcap is not None}
        ctx.where = {"CAUSAL": causal, "PREFIX": prefix, "SLOTS": use_slots} | tiles(groups * K, head)
        if out.numel():
            grid = (B * key.shape[1], triton.cdiv(groups * K, ctx.where["BQ"]))  # the second is at most 65,535
            attend[grid](*ctx.inputs, out, sums, *ctx.numbers, *ctx.strides, **ctx.sizes, **ctx.where)
        ctx.save_for_backward(out, sums)
        return out.to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, *_ = ctx.inputs
        (grad,), done = _alike(grad), ctx.saved_tensors
        (B, _, K, head), HKV, groups = query.shape, key.shape[1], ctx.sizes["GROUPS"]
        dq = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (key, value))
        causal, kind = ctx.where["CAUSAL"], {"dtype": torch.float32, "device": query.device}
        parts = (dk, dv) if causal else (torch.empty(query.shape, **kind), torch.empty(query.shape, **kind))
        numbers = (*ctx.numbers, *ctx.strides)
        if dq.numel():
            grid = (B * HKV, triton.cdiv(groups * K, ctx.where["BQ"]))
            strides = grad.stride()[:3]
            query_gradients[grid](*ctx.inputs, *done, grad, dq, *parts, *numbers, *strides, **ctx.sizes, **ctx.where)
            if causal:
                own, blocks = key_tiles(head), triton.cdiv(K, key_tiles(head)["BK"])
                key_gradients[(B * HKV, blocks)](
                    *(query, key, value, *done, grad, dk, dv), *numbers[:10], *strides, **ctx.sizes, **own
                )
        if not causal:
            shape = (B, HKV, groups, K, head)
            dk, dv = (p.view(shape).sum(2).to(t.dtype) for p, t in zip(parts, (key, value), strict=True))
        return dq, dk, dv, *[None] * 8


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None,
    prefix_value: Tensor | None,
    lengths: Tensor | None,
    slots: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Contract of `reference.prefix_attention`; no gradient reaches the prefix."""
    arguments = (query, key, value, prefix_key, prefix_value, lengths, slots, scale, causal, window, softcap)
    return _PrefixAttention.apply(*arguments)  # type: ignore[return-value]
