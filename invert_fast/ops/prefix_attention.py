"""`prefix_attention`: a block of queries a lane against [shared prefix KV | own KV]. On a CPU two kernels share the
work: `fan_out_attention.py` and `draft_attention.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invert_fast.kernels import attention

from . import draft_attention, fan_out_attention, outside
from .table import backend as backend_of

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor | None = None,
    prefix_value: Tensor | None = None,
    lengths: Tensor | None = None,
    slots: Tensor | None = None,
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """A block of queries a lane against [shared prefix KV | own KV], see `kernels.reference.prefix_attention`."""
    if query.shape[1] % key.shape[1] or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"prefix_attention of queries {list(query.shape)} and keys {list(key.shape)}: expected "
            "[B, Hq, K, d] and [B, Hkv, K, d] with Hq a multiple of Hkv"
        )
    plain = causal and query.shape[2] > 1 and prefix_key is None  # PyTorch's own kernels are made for that
    if backend == "auto" and query.device.type == "cuda" and (plain or query.dtype not in _TRITON_DTYPES):
        backend = "auto" if outside.serving("prefix_attention", "cuda") else "fused"
    return backend_of("prefix_attention", backend, query.device)(
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


def cpp(query: Tensor, key: Tensor, *rest: Any, causal: bool, softcap: float | None = None, **options: Any) -> Tensor:
    """csrc/fan_out.cpp for a few fp32 tokens a lane, each on its own; csrc/draft.cpp for many in a row. PyTorch for
    everything else."""
    if fan_out_attention.fits(query, causal, softcap):
        return fan_out_attention.attention(query, key, *rest, **options)
    if causal and draft_attention.fits(query, softcap):
        return draft_attention.attention(query, key, *rest, **options)
    return attention.prefix_attention(query, key, *rest, causal=causal, softcap=softcap, **options)
