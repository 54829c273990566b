"""Attention to the last rows alone, as the learned lens has it, forwards and backwards, against a mask."""

from __future__ import annotations

import pytest
import torch

from invert_fast.lens import learned
from invert_fast.ops import draft_attention, prefix_attention


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 128, 130, 300])
def test_rows_attend_to_the_last_rows_alone(length):
    """Both ways of computing it, forwards and backwards, against a mask."""
    draw = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 16, generator=draw, requires_grad=True) for _ in range(3))
    at = torch.arange(length)
    visible = (at[None] <= at[:, None]) & (at[None] > at[:, None] - learned.WINDOW)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    found = prefix_attention(q, k, v, scale=0.25, causal=True, window=learned.WINDOW, backend="fused").transpose(1, 2)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=draw)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    if draft_attention.available():
        q, k, v = (t.detach() for t in (q, k, v))
        compiled = draft_attention.attention(q, k, v, None, None, None, scale=0.25, window=learned.WINDOW)
        torch.testing.assert_close(compiled.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
