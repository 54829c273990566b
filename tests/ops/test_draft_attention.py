"""csrc/draft.cpp at the sizes of real chunks, against attention over whole sequences in float64; other shapes are in
test_prefix_attention.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invert_fast.ops import draft_attention

from ..limits import close
from .attention import expected, sizes

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")
pytestmark = pytest.mark.numeric


def chunk(B: int, Hq: int, Hkv: int, K: int, d: int, longest: int) -> tuple[Tensor, ...]:
    """q, k, v as views of one projection, a storage of more rows than lanes, lengths and slots."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(B, K, (Hq + 2 * Hkv) * d, generator=generator)
    q, k, v = (t.unflatten(-1, (-1, d)).transpose(1, 2) for t in both.split([Hq * d, Hkv * d, Hkv * d], -1))
    keys, values = (torch.randn(B + 2, Hkv, longest + 5, d, generator=generator) for _ in range(2))
    lengths = torch.randint(longest + 1, (B,), generator=generator)
    lengths[0] = longest
    return (
        q,
        k,
        v,
        keys[:, :, :longest],
        values[:, :, :longest],
        lengths,
        torch.randperm(B + 2, generator=generator)[:B],
    )


def check(found: Tensor, arguments: tuple[Tensor, ...], **settings) -> None:
    __tracebackhide__ = True
    size = sizes(*arguments, causal=True, **settings)
    close(found, expected(*arguments, causal=True, **settings), scale=size.out, terms=size.terms)


@pytest.mark.parametrize("window", [None, 1, 50, 400])
@pytest.mark.parametrize("shape", [(1, 4, 4, 200, 64, 300), (3, 4, 2, 65, 80, 130), (2, 3, 1, 17, 20, 0)], ids=str)
def test_real_chunks(shape, window):
    arguments = chunk(*shape)
    settings = {"scale": 0.3, "window": window}
    check(draft_attention.attention(*arguments, **settings), arguments, **settings)


def test_threads_and_other_lanes_change_nothing():
    q, k, v, keys, values, lengths, slots = chunk(5, 4, 4, 70, 64, 90)
    whole = draft_attention.attention(q, k, v, keys, values, lengths, slots, scale=0.125)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 8):
            torch.set_num_threads(count)
            again = draft_attention.attention(q, k, v, keys, values, lengths, slots, scale=0.125)
            assert torch.equal(again, whole)
    finally:
        torch.set_num_threads(threads)
    for b in range(5):
        one = slice(b, b + 1)
        alone = draft_attention.attention(q[one], k[one], v[one], keys, values, lengths[one], slots[one], scale=0.125)
        assert torch.equal(alone, whole[one])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_spoilt_query_spoils_no_other_and_is_not_hidden(bad):
    q, k, v, *prefix = chunk(1, 2, 2, 40, 32, 30)
    wanted = draft_attention.attention(q, k, v, *prefix, scale=0.2)
    q = q.clone()
    q[0, 1, 20] = bad
    found = draft_attention.attention(q, k, v, *prefix, scale=0.2)
    if bad == 1e30:  # a one-hot softmax, as it should be
        assert found.isfinite().all()
    else:
        assert found[0, 20, 1].isnan().all()
    others = torch.ones(40, 2, dtype=torch.bool)
    others[20, 1] = False
    assert torch.equal(found[0][others], wanted[0][others])


def test_far_scores_underflow_to_zero():
    q, k, v, *prefix = chunk(1, 1, 1, 30, 16, 0)
    found = draft_attention.attention(100 * q, 100 * k, v, *prefix, scale=1.0)
    check(found, (100 * q, 100 * k, v, *prefix), scale=1.0)
