"""The twins' attention: transformers' interface on one side, `ops.prefix_attention` on the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
    call, layer = _call.get(), module.layer_idx
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
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out, None


AttentionInterface.register(NAME, _attend)  # used by our twins alone: nobody else's config names it
