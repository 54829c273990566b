"""`prefix_attention` on PyTorch's own fused attention where it fits the shape, on the reference formula where not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference


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
    """Contract of `reference.prefix_attention`. Drafts go through `scaled_dot_product_attention`.

    A fan-out stays on the formula: as one fused call it would need an N×N mask for what is a diagonal.
    """
    K = query.shape[2]
    causal = causal or K == 1  # one token alone is a draft of one
    if not causal or softcap is not None:
        return reference.prefix_attention(
            query,
            key,
            value,
            prefix_key,
            prefix_value,
            lengths,
            slots,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
        )
    mask = None
    if prefix_key is not None and prefix_value is not None and lengths is not None:
        if slots is not None:  # one copy a lane (not a candidate): fused attention has no row index
            prefix_key, prefix_value = prefix_key[slots], prefix_value[slots]
        L = prefix_key.shape[2]
        key, value = torch.cat([prefix_key, key], 2), torch.cat([prefix_value, value], 2)
        at, step = torch.arange(L, device=query.device), torch.arange(K, device=query.device)
        back = (at < lengths[:, None])[:, None].expand(-1, K, -1)  # [B, K, L]
        own = step[:, None] >= step
        if window is not None:
            back = back & (lengths[:, None, None] + step[:, None] - at < window)
            own = own & (step[:, None] - step < window)
        mask = torch.cat([back, own.expand(len(back), -1, -1)], -1)[:, None]
    elif window is not None and window < K:
        return _in_blocks(query, key, value, scale, window).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
    """Causal attention to the `window` last rows, `[B, H, K, d]`: each block of so many rows sees itself and the block
    before it, so that the cost is linear in the length of a text."""
    B, H, K, d = query.shape
    if key.shape[1] != H:
        key, value = (t.repeat_interleave(H // t.shape[1], 1) for t in (key, value))
    blocks = -(-K // window)
    here = [F.pad(t, (0, 0, 0, blocks * window - K)).reshape(B * H, blocks, window, d) for t in (query, key, value)]
    keys, values = (torch.cat([F.pad(t, (0, 0, 0, 0, 1, 0))[:, :-1], t], 2) for t in here[1:])
    row = torch.arange(window, device=query.device)[:, None]
    column = torch.arange(-window, window, device=query.device)
    visible = ((column <= row) & (column > row - window)).repeat(blocks, 1, 1)
    visible[0, :, :window] = False  # there is no block before the first
    seen = F.scaled_dot_product_attention(here[0], keys, values, attn_mask=visible, scale=scale)
    return seen.reshape(B, H, -1, d)[:, :, :K]
