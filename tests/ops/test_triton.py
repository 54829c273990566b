"""What is particular to the Triton kernels: tiles, programs and storage types.

They run in Triton's interpreter or, with TRITON_INTERPRET=0, on a GPU. The common tests of the ops, in test_ops.py, run
them too.
"""

from __future__ import annotations

import os

import pytest
import torch
from invert_fast.kernels import reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux)")

from invert_fast.kernels import adam_triton, attention_triton, nearest_triton, residuals_triton

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16]
METRICS = ["l1", "l2", "cosine", "dot"]


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("B", "V", "D", "count"),
    [(1, 256, 128, 1), (3, 130, 33, 1), (18, 65, 40, 2), (2, 300, 32, 299), (4, 1200, 32, 5), (1, 63, 130, 3)],
)
def test_nearest_tokens_at_even_and_ragged_tiles(B, V, D, count, metric, dtype):
    queries, table = rows(B, D + 2)[:, 1:-1], rows(V, D + 1, seed=1, dtype=dtype)[:, :-1]
    banned = (rows(B, V + 1, seed=2) > 1)[:, 1:]
    values, ids = nearest_triton.nearest_tokens(queries, table, count, metric, banned)
    wanted, _ = reference.nearest_tokens(queries.double(), table, count, metric, banned)
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=2e-5)
    assert (ids >= 0).eq(values.isfinite()).all()
    assert not banned.gather(1, ids.clamp_min(0))[ids >= 0].any()
    every, order = reference.nearest_tokens(queries, table, V, metric)
    by_id = torch.empty_like(every).scatter(1, order, every)
    torch.testing.assert_close(by_id.gather(1, ids.clamp_min(0))[ids >= 0], values[ids >= 0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("B", [1, 3, 9])
def test_ties_across_tiles_go_to_the_lower_id(metric, count, B):
    table = rows(10, 8, seed=1).repeat(60, 1)  # each row sixty times, in every tile
    _, ids = nearest_triton.nearest_tokens(rows(B, 8), table, count, metric)
    for row in ids.tolist():
        for start in range(0, count, 60):
            run = row[start : start + 60]
            assert run == list(range(run[0] % 10, 600, 10))[: len(run)]


@pytest.mark.parametrize("count", [1, 3])
def test_rows_and_queries_that_are_not_numbers_are_not_returned(count):
    queries, table = rows(3, 40), rows(80, 40, seed=1)
    table[2:, 7], queries[1, 3] = torch.nan, torch.nan
    values, ids = nearest_triton.nearest_tokens(queries, table, count)
    assert (ids[1] == -1).all()
    assert values[1].eq(torch.inf).all()
    assert set(ids[[0, 2]].flatten().tolist()) - {-1} <= {0, 1}


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_asked_gives_nothing(count):
    values, ids = nearest_triton.nearest_tokens(rows(0, 8), rows(5, 8), count)
    assert values.shape == ids.shape == (0, count)


@pytest.mark.parametrize("prediction_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 256), (3, 9, 300), (1, 17, 3), (2, 0, 8)], ids=str)
def test_residuals_in_mixed_precision_and_at_strides(shape, prediction_dtype, target_dtype):
    B, C, D = shape
    predictions = rows(C, B, D + 1, dtype=prediction_dtype).transpose(0, 1)[..., 1:]
    targets = rows(B, D, seed=1, dtype=target_dtype)
    targets[0] = 0
    found = residuals_triton.residuals(predictions, targets)
    torch.testing.assert_close(found, reference.residuals(predictions, targets), rtol=2e-6, atol=0)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("D", [1, 33, 1030])  # the last in two blocks
def test_adam_step_late_in_and_after_the_schedule(D, clip):
    B, total = 6, 1000
    tables = [rows(B, D + 3, seed=i)[:, i % 3 : D + i % 3] for i in range(4)]
    tables[3].abs_()
    steps, active = torch.tensor([0, 10, 500, 999, 1500, 7], device=DEVICE), torch.arange(B, device=DEVICE) < 5
    settings = {"lr": 0.3, "total_steps": total, "clip": clip, "weight_decay": 0.01}
    wanted = [t.clone() for t in (*tables, steps)]
    reference.adam_step(*wanted[:4], wanted[4], active, **settings)
    adam_triton.adam_step(*tables[:4], steps, active, **settings)
    for found, expected in zip((*tables, steps), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


def test_adam_step_keeps_a_bad_gradient_in_its_lane():
    tables = [rows(3, 20, seed=i).abs() for i in range(4)]
    tables[1][1, 5] = torch.nan
    steps, active = torch.zeros(3, dtype=torch.long, device=DEVICE), torch.ones(3, dtype=torch.bool, device=DEVICE)
    adam_triton.adam_step(*tables, steps, active, lr=0.1, total_steps=10)
    assert tables[0].isfinite().all(1).tolist() == [True, False, True]


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
    slots = torch.arange(2 * B, 0, -2, device=DEVICE)
    stored = rows(2, 2 * B + 1, heads, max(lengths) + 2, d, seed=3, dtype=dtype)
    there = torch.zeros(stored.shape[1], stored.shape[3], dtype=torch.bool, device=DEVICE)
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        there[slot, :length] = True
    stored = stored.masked_fill(~there[None, :, None, :, None], torch.nan)
    return query, key, value, stored[0], stored[1], torch.tensor(lengths, device=DEVICE), slots


def clean(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """For the formula, which hides by weights of zero."""
    return tuple(t.nan_to_num().double() if t.is_floating_point() else t for t in arguments)


@pytest.mark.parametrize(
    ("dtype", "window", "softcap"), [(torch.float32, None, None), (torch.float32, 6, 1.5), (torch.bfloat16, 6, 1.5)]
)
@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_prefix_attention_and_its_gradients_at_strides_and_behind_slots(shape, causal, window, softcap, dtype):
    arguments = attention_case(*shape, dtype)
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap}
    grad = rows(shape[0], shape[3], shape[1] * shape[2], shape[4], seed=7, dtype=dtype)

    def run(attention, arguments, grad) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in arguments[:3]]
        out = attention(*leaves, *arguments[3:], **options)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    found = run(attention_triton.prefix_attention, arguments, grad)
    wanted = run(reference.prefix_attention, clean(arguments), grad.double())
    limit = {torch.float32: 3e-6, torch.bfloat16: 1e-2}[dtype]  # bf16: what it costs to write an answer down
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.double(), theirs, rtol=limit, atol=limit * float(theirs.abs().max()))


@pytest.mark.parametrize("causal", [True, False], ids=["draft", "fan-out"])
def test_prefix_attention_of_coarse_queries_over_a_full_storage(causal):
    """What a search under autocast asks for: bf16 of its own, after an fp32 prefix."""
    fine = attention_case(2, 2, 1, 3, 16, [9, 4], torch.float32)
    mixed = (*(t.bfloat16() for t in fine[:3]), *fine[3:])
    found = attention_triton.prefix_attention(*mixed, scale=0.3, causal=causal)
    wanted = reference.prefix_attention(*clean(mixed), scale=0.3, causal=causal)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)


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
    tables, steps = [rows(3, 20, seed=i).abs() for i in range(4)], torch.zeros(3, dtype=torch.long, device=DEVICE)
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
