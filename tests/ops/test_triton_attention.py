"""`prefix_attention` in Triton: tiles, programs and storage types, with gradients.

In Triton's interpreter or, with TRITON_INTERPRET=0, on a GPU. The common tests of the op run it too.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..limits import close
from .attention import expected, sizes, with_gradients
from .inputs import TRITON_DEVICE, random

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux)")

from invert_fast.kernels import adam_triton, attention_triton

pytestmark = pytest.mark.numeric
rows = partial(random, device=TRITON_DEVICE)
INTERPRETED = TRITON_DEVICE == "cpu"

# Lanes, heads that share a key head, key heads, queries, size of a head, lengths: even, ragged, raggeder.
ATTENTION = [
    (2, 1, 2, 1, 64, [64, 64]),
    (3, 1, 1, 1, 24, [33, 0, 70]),
    (2, 4, 1, 1, 80, [5, 40]),
    (2, 3, 2, 2, 9, [17, 1]),
    (1, 2, 2, 21, 33, [37]),
    (2, 1, 1, 17, 130, [0, 3]),
]


def attention_case(B, groups, heads, K, d, lengths, dtype) -> tuple[Tensor, ...]:
    """Views with gaps, and a storage with NaN wherever nothing was stored: of another lane, or past a length."""
    query = rows(B, K, groups * heads, d + 1, dtype=dtype)[..., 1:].transpose(1, 2)
    key, value = (rows(B, K, heads, d, seed=i, dtype=dtype).transpose(1, 2) for i in (1, 2))
    slots = torch.arange(2 * B, 0, -2, device=TRITON_DEVICE)
    stored = rows(2, 2 * B + 1, heads, max(lengths) + 2, d, seed=3, dtype=dtype)
    there = torch.zeros(stored.shape[1], stored.shape[3], dtype=torch.bool, device=TRITON_DEVICE)
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        there[slot, :length] = True
    stored = stored.masked_fill(~there[None, :, None, :, None], torch.nan)
    return query, key, value, stored[0], stored[1], torch.tensor(lengths, device=TRITON_DEVICE), slots


def exactly(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For the oracle."""
    return tuple(t.double() if t.is_floating_point() else t for t in arguments)


@pytest.mark.parametrize(
    ("dtype", "window", "softcap"), [(torch.float32, None, None), (torch.float32, 6, 1.5), (torch.bfloat16, 6, 1.5)]
)
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_prefix_attention_and_its_gradients_at_strides_and_behind_slots(shape, causal, window, softcap, dtype):
    arguments = attention_case(*shape, dtype)
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap}
    grad = rows(shape[0], shape[3], shape[1] * shape[2], shape[4], seed=7, dtype=dtype)

    found = with_gradients(attention_triton.prefix_attention, arguments, grad, **options)
    wanted = with_gradients(expected, exactly(arguments), grad, **options)
    size = sizes(*arguments, **options, grad=grad)
    for ours, theirs, scale in zip(found, wanted, size[:4], strict=True):
        assert ours.dtype == dtype
        # products are in fp32 whatever is stored
        close(ours, theirs, scale=scale, terms=size.terms, cut=INTERPRETED)


@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
def test_prefix_attention_of_coarse_queries_over_a_full_storage(causal):
    """What a search under autocast asks for: bf16 of its own, after an fp32 prefix."""
    fine = attention_case(2, 2, 1, 3, 16, [9, 4], torch.float32)
    mixed = (*(t.bfloat16() for t in fine[:3]), *fine[3:])
    found = attention_triton.prefix_attention(*mixed, scale=0.3, causal=causal)
    size = sizes(*mixed, scale=0.3, causal=causal)
    assert found.dtype == torch.bfloat16
    close(found, expected(*exactly(mixed), scale=0.3, causal=causal), scale=size.out, terms=size.terms)


def test_no_lanes_and_no_queries():
    none = rows(0, 2, 1, 8)
    assert attention_triton.prefix_attention(none, none, none, None, None, None, scale=1.0, causal=False).numel() == 0
    leaf = rows(2, 2, 0, 8).requires_grad_()
    out = attention_triton.prefix_attention(leaf, leaf, leaf, None, None, None, scale=1.0, causal=True)
    assert torch.autograd.grad(out.sum(), leaf)[0].shape == leaf.shape


class NoWaiting(TorchDispatchMode):
    """Refuses what a host would have to wait for the device for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh"), (
            name
        )
        return func(*args, **(kwargs or {}))


def test_nothing_of_a_captured_step_waits_for_the_device():
    leaf = rows(2, 4, 1, 16).requires_grad_()
    *_, prefix_key, prefix_value, lengths, slots = attention_case(2, 2, 2, 1, 16, [3, 0], torch.float32)
    tables, steps = (
        [rows(3, 20, seed=i).abs() for i in range(4)],
        torch.zeros(3, dtype=torch.long, device=TRITON_DEVICE),
    )
    key = rows(2, 2, 1, 16, seed=1)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        bool(steps.any())
    with NoWaiting():
        out = attention_triton.prefix_attention(
            *(leaf, key, key, prefix_key, prefix_value, lengths, slots), scale=0.3, causal=False
        )
        torch.autograd.grad(out.sum(), leaf)
        adam_triton.adam_step(*tables, steps, steps == 0, lr=0.1, total_steps=10)
    assert steps.tolist() == [1, 1, 1]
