"""What the kernels of `attention_triton.py` do with one tile of queries and one of keys, in full fp32."""

# pyright: reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)  # a logit that weighs nothing; −inf would make NaN of a row that has seen nothing yet


@triton.jit
def products(a, b, DOT: tl.constexpr):
    """a `[m, d]`, b `[n, d]` → a bᵀ"""
    if DOT:
        return tl.dot(a, tl.trans(b), input_precision="ieee")
    return tl.sum(a[:, None, :] * b[None, :, :], 2)


@triton.jit
def mixture(weights, rows, DOT: tl.constexpr):
    """weights `[m, n]`, rows `[n, d]` → their product"""
    if DOT:
        return tl.dot(weights, rows, input_precision="ieee")
    return tl.sum(weights[:, :, None] * rows[None, :, :], 1)


@triton.jit
def capped(logits, softcap, SOFTCAP: tl.constexpr):
    """softcap · tanh(logits / softcap). tanh x = 1 − 2 / (e²ˣ + 1), which holds at both ends."""
    if SOFTCAP:
        logits = (1.0 - 2.0 / (tl.exp(2.0 * logits / softcap) + 1.0)) * softcap
    return logits


@triton.jit
def uncapped(slope, logits, softcap, SOFTCAP: tl.constexpr):
    """The gradient by a logit from that by the capped one."""
    if SOFTCAP:
        slope = slope * (1.0 - (logits / softcap) * (logits / softcap))
    return slope


@triton.jit
def load_rows(pointer, at, stride, there, d, HEAD: tl.constexpr):
    """Rows `at [n]` of `[n, HEAD]` as fp32, 0 where they are not there."""
    mask = there[:, None] & (d < HEAD)[None, :]
    return tl.load(pointer + at[:, None] * stride + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_keys(q, k, v, seen, most, total, mixed, scale, softcap, SOFTCAP: tl.constexpr, DOT: tl.constexpr):
    """One block of keys more in the online softmax."""
    logits = tl.where(seen, capped(products(q, k, DOT) * scale, softcap, SOFTCAP), HIDDEN)
    higher = tl.maximum(most, tl.max(logits, 1))
    weights = tl.where(seen, tl.exp(logits - higher[:, None]), 0.0)
    shrink = tl.exp(most - higher)
    return higher, total * shrink + tl.sum(weights, 1), mixed * shrink[:, None] + mixture(weights, v, DOT)


@triton.jit
def slopes(q, k, v, seen, grad, delta, lse, scale, softcap, SOFTCAP: tl.constexpr, DOT: tl.constexpr):
    """Weights of a block of keys, and the gradient by q · k · scale."""
    logits = capped(products(q, k, DOT) * scale, softcap, SOFTCAP)
    weights = tl.where(seen, tl.exp(tl.where(seen, logits - lse[:, None], 0.0)), 0.0)
    slope = weights * (products(grad, v, DOT) - delta[:, None])
    return weights, uncapped(slope, logits, softcap, SOFTCAP)
