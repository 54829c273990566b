"""The twins' attention: transformers' interface on one side, `ops.prefix_attention` on the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .. import ops
from .prefix import PrefixCall

NAME = "invert_fast_prefix"
_call: ContextVar[PrefixCall] = ContextVar("invert_fast_prefix_call")


@contextmanager
def attending(call: PrefixCall) -> Iterator[None]:
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
    query, key, value = _alike(query, key, value)
    call.own[layer] = (key, value)
    prefix = (None, None) if call.keys is None or call.values is None else (call.keys[layer], call.values[layer])
    out = ops.prefix_attention(
        query,
        key,
        value,
        *prefix,
        call.lengths,
        call.slots,
        causal=call.causal,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[..., :width].contiguous(), None  # some families view it as rows


def _alike(*heads: Tensor) -> tuple[Tensor, ...]:
    """Heads of one width: where values have another than queries and keys (attention over compressed keys), zeros make
    up for it. They add nothing to a score, and nothing to what is read."""
    most = max(head.shape[-1] for head in heads)
    return tuple(head if head.shape[-1] == most else F.pad(head, (0, most - head.shape[-1])) for head in heads)


AttentionInterface.register(NAME, _attend)  # used by our twins alone: nobody else's config names it
