"""csrc/draft.cpp: attention of a chunk of text after each lane's prefix, without gradient.

PyTorch's wants the prefix copied beside the chunk and a mask over both, and computes what the mask hides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fan_out_attention import GIVEN, arguments
from .native import _C, address, has_values
from .recording import define, is_recording


def available() -> bool:
    """Whether the library was built and this processor has the tiles for it."""
    return _C is not None and _C.tiles_are_wide()


def fits(query: Tensor, softcap: float | None) -> bool:
    """Whether `attention` below computes this case of a causal `prefix_attention`, and is the faster."""
    return (
        available()
        and (is_recording() or has_values(query))
        and query.dtype == torch.float32
        and softcap is None
        and not (torch.is_grad_enabled() and query.requires_grad)
    )


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
    """Contract of `kernels.reference.prefix_attention` with causal=True and no softcap: `[B, K, Hq, d]`."""
    op = _recorded if is_recording() else _forward
    return op(query, key, value, prefix_key, prefix_value, lengths, slots, scale, window)


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
) -> Tensor:
    call, kept = arguments(query, key, value, prefix_key, prefix_value, lengths, slots, scale, window)
    B, Hq, K, d = query.shape
    out = query.new_empty(B, K, Hq, d)
    _C.draft_attention(*call, address(out), torch.get_num_threads())
    del kept
    return out


_recorded = define(f"draft_attention({GIVEN}) -> Tensor", _forward)
