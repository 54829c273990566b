"""Cases of `prefix_attention`, attention over whole sequences as their oracle, and how far from it a kernel may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import random


def dense(query, key, value, scale, window=None, softcap=None) -> Tensor:
    """Plain causal attention of the last n queries `[H, n, d]` of a sequence `[Hkv, T, d]`, loop by loop, float64."""
    query, key, value = query.double(), key.double(), value.double()
    (heads, n, d), before = query.shape, key.shape[1] - query.shape[1]
    out = torch.zeros(heads, n, d, dtype=torch.float64, device=query.device)
    for h in range(heads):
        own = h // (heads // key.shape[0])
        for i in range(n):
            start, end = 0 if window is None else max(0, before + i - window + 1), before + i + 1
            scores = key[own, start:end] @ query[h, i] * scale
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            out[h, i] = torch.softmax(scores, 0) @ value[own, start:end]
    return out


def expected(
    query, key, value, prefix_key, prefix_value, lengths, slots, *, scale, causal, window=None, softcap=None
) -> Tensor:
    """`prefix_attention` as whole sequences: one a lane for a draft, one a candidate for a fan-out."""
    B, Hq, K, d = query.shape
    out = torch.zeros(B, K, Hq, d, dtype=torch.float64, device=query.device)
    for b in range(B):
        length = 0 if prefix_key is None else int(lengths[b])
        row = b if slots is None else int(slots[b])
        none = key[b, :, :0]
        before = (none, none) if prefix_key is None else (prefix_key[row, :, :length], prefix_value[row, :, :length])
        for steps in [range(K)] if causal else [[k] for k in range(K)]:
            keys = torch.cat([before[0], key[b, :, list(steps)]], 1)
            values = torch.cat([before[1], value[b, :, list(steps)]], 1)
            out[b, list(steps)] = dense(query[b, :, list(steps)], keys, values, scale, window, softcap).transpose(0, 1)
    return out


def case(B=3, groups=1, heads=2, K=4, d=8, S=None, M=9, lengths=None, slots=None, dtype=torch.float32, seed=0) -> tuple:
    S = S or B
    q, k, v = (random(B, h, K, d, seed=seed + i, dtype=dtype) for i, h in enumerate((heads * groups, heads, heads)))
    if lengths is None:
        return q, k, v, None, None, None, None
    stored = random(2, S, heads, M, d, seed=seed + 9, dtype=dtype)
    lengths = torch.tensor(lengths)
    rows = torch.arange(B) if slots is None else torch.tensor(slots)
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        stored[:, row, :, length:] = 1e4  # what earlier texts left there must not matter
    return q, k, v, stored[0], stored[1], lengths, None if slots is None else rows


CASES = {
    "no prefix": {},
    "one token": {"K": 1, "B": 1},
    "even": {"lengths": [8, 8, 8], "M": 8},
    "ragged": {"lengths": [7, 0, 3]},
    "grouped heads": {"lengths": [7, 0, 3], "groups": 3},
    "one query group": {"lengths": [2, 9, 5], "groups": 4, "heads": 1, "d": 5},
    "slots": {"lengths": [4, 9, 1], "slots": [5, 0, 2], "S": 6},
    "permuted slots": {"lengths": [4, 9, 1], "slots": [2, 0, 1]},
    "wide": {"lengths": [1, 2], "B": 2, "K": 33, "d": 7, "groups": 2},
}


class Sizes(NamedTuple):
    """For `limits`: the scale of out `[B, K, Hq, d]` and of the gradients by query, key and value, and the terms."""

    out: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    terms: int


def sizes(
    query, key, value, prefix_key, prefix_value, lengths, slots, *, scale, causal, window=None, softcap=None, grad=None
) -> Sizes:
    """What the sums of `prefix_attention` add up to in absolute values, grad `[B, K, Hq, d]` being that of out.

    A logit s = q·k·scale is off by its sum |q|·|k|·scale, and a weight w by as much of itself, less what it shares with
    the others: w (|s| + Σ w |s|). Gradients have it from there: slopes w (g·v − Σ w g·v), times keys or queries.
    """
    B, Hq, K, d = query.shape
    grad = torch.zeros(B, K, Hq, d) if grad is None else grad
    Hkv, groups = key.shape[1], Hq // key.shape[1]
    out, dq = torch.zeros(B, Hq, K, d, dtype=torch.float64), torch.zeros(B, Hq, K, d, dtype=torch.float64)
    dk, dv = (torch.zeros(B, Hkv, K, d, dtype=torch.float64) for _ in range(2))
    longest, bend = 0, 1 if softcap is None else 1 + 1 / softcap
    for b in range(B):
        length = 0 if prefix_key is None else int(lengths[b])
        row = b if slots is None else int(slots[b])
        longest = max(longest, length)
        step, at = torch.arange(K)[:, None], torch.arange(length + K)
        position = torch.where(at < length, at, at if causal else torch.full_like(at, length))
        own = length + (step if causal else torch.zeros_like(step))
        seen = (position <= own) if causal else ((at < length) | (at - length == step))
        seen = seen if window is None else seen & (own - position < window)
        for h in range(Hq):
            q, g = query[b, h].cpu().double(), grad[b, :, h].cpu().double()
            keys, values = key[b, h // groups], value[b, h // groups]
            if length:
                keys = torch.cat([prefix_key[row, h // groups, :length].to(keys.dtype), keys])
                values = torch.cat([prefix_value[row, h // groups, :length].to(values.dtype), values])
            keys, values = keys.cpu().double(), values.cpu().double()
            logits = q @ keys.T * scale
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)
            size = q.abs() @ keys.abs().T * scale
            loose = weights * (1 + size + (weights * size).sum(-1, keepdim=True))
            out[b, h] = loose @ values.abs()
            slope = g.abs() @ values.abs().T
            slope = loose * (slope + (loose * slope).sum(-1, keepdim=True)) * bend
            dq[b, h] = slope @ keys.abs() * scale
            dk[b, h // groups] += (slope.T @ q.abs() * scale)[length:]
            dv[b, h // groups] += (loose.T @ g.abs())[length:]
    terms = 2 * d + longest + (groups + 1) * K + 32  # 16 of them for an exp of 20 bits, as PyTorch has one
    return Sizes(out.transpose(1, 2), dq, dk, dv, terms)


def with_gradients(attention: Callable, arguments: tuple, grad: Tensor, **options) -> list[Tensor]:
    """The answer, and its gradients by query, key and value."""
    leaves = [t.detach().clone().requires_grad_() for t in arguments[:3]]
    out = attention(*leaves, *arguments[3:], **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]
