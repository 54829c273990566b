"""The twins' attention: transformers' interface on one side, `ops.prefix_attention` on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .. import ops
from .prefix import JointCall, PrefixCall

NAME = "invert_fast_prefix"
_call: ContextVar[PrefixCall | JointCall] = ContextVar("invert_fast_prefix_call")


@contextmanager
def attending(call: PrefixCall | JointCall) -> Iterator[None]:
    """For the duration our attention sees this call's prefixes, and leaves its keys and values there."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def _attend(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, softcap=None, **_unused
):
    """transformers' attention interface: `[B, H, K, d]` in, `[B, K, H, d]` out; the mask is ours, never theirs."""
    call, layer, width = _call.get(), module.layer_idx, value.shape[-1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads = _alike(query, key, value)
    options = {"scale": scaling, "window": sliding_window, "softcap": softcap}
    if isinstance(call, PrefixCall):
        out = _attended(call, layer, heads, options)
    else:
        found, start = [], 0
        for part, B, K in call.parts:
            own = [head[0, :, start : start + B * K].unflatten(1, (B, K)).transpose(0, 1) for head in heads]
            found.append(_attended(part, layer, own, options).flatten(0, 1))
            start += B * K
        out = torch.cat(found)[None]
    return out[..., :width].contiguous(), None  # some families view it as rows


def _attended(call: PrefixCall, layer: int, heads: Sequence[Tensor], options: dict[str, Any]) -> Tensor:
    """Of queries, keys and values `[B, H, K, d]` of one call: `[B, K, H, d]`."""
    query, key, value = heads
    call.own[layer] = (key, value)
    prefix = (None, None) if call.keys is None or call.values is None else (call.keys[layer], call.values[layer])
    return ops.prefix_attention(query, key, value, *prefix, call.lengths, call.slots, causal=call.causal, **options)


def _alike(*heads: Tensor) -> tuple[Tensor, ...]:
    """Heads of one width: where values have another than queries and keys (attention over compressed keys), zeros make
    up for it. They add nothing to a score, and nothing to what is read."""
    most = max(head.shape[-1] for head in heads)
    return tuple(head if head.shape[-1] == most else F.pad(head, (0, most - head.shape[-1])) for head in heads)


AttentionInterface.register(NAME, _attend)  # used by our twins alone: nobody else's config names it
