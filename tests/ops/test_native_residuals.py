"""The compiled `residuals` op against float64, for every type, stride, thread count and kind of bad value."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .inputs import DTYPES, random
from .residuals import check

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")

pytestmark = pytest.mark.numeric
both_dtypes = pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
all_dtypes = [(prediction, target) for prediction in DTYPES for target in DTYPES]


def residuals(predictions: torch.Tensor, targets: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """The op, with a canary behind its output."""
    batch, candidates, width = predictions.shape
    out = torch.full((batch * candidates + 1,), -7.0)
    C.residuals(
        *(predictions.data_ptr(), targets.data_ptr(), out.data_ptr()),
        *(batch, candidates, width),
        *(predictions.stride(0), predictions.stride(1), targets.stride(0)),
        *(predictions.dtype == torch.bfloat16, targets.dtype == torch.bfloat16, threads),
    )
    assert out[-1] == -7.0, "the op wrote past its output"
    return out[:-1].view(batch, candidates)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 4),
    st.integers(0, 5),
    st.integers(0, 200),
    st.sampled_from(all_dtypes),
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 33)),
    st.integers(0, 4),
    st.integers(0, 2**31),
)
def test_matches_float64_at_any_shape_type_and_stride(batch, candidates, width, dtypes, padding, threads, seed):
    pad_b, pad_c, pad_d = padding
    # Views into the middle of larger tensors: rows are unaligned, and a wrong stride reads a wrong value.
    predictions = random(batch + pad_b, candidates + pad_c, width + pad_d, dtype=dtypes[0], seed=seed)
    targets = random(batch + pad_b, width + pad_d, dtype=dtypes[1], seed=seed + 1)
    predictions, targets = predictions[pad_b:, pad_c:, pad_d:], targets[pad_b:, pad_d:]
    found = residuals(predictions, targets, threads)
    check(found, predictions, targets)


@pytest.mark.parametrize("dtypes", all_dtypes, ids=str)
@pytest.mark.parametrize("width", [768, 4096, 5001])
def test_matches_float64_at_model_widths(width, dtypes):
    targets = random(2, width, dtype=dtypes[1])
    predictions = random(2, 3, width, dtype=dtypes[0], seed=1)
    predictions[0, 0] = (targets[0].float() * (1 + 1e-2 * random(width, seed=2))).to(dtypes[0])  # a near miss
    check(residuals(predictions, targets), predictions, targets)


def test_expanded_and_transposed_tensors():
    targets = random(1, 100).expand(4, 100)
    predictions = random(5, 4, 100, seed=1).transpose(0, 1)
    check(residuals(predictions, targets), predictions, targets)


@both_dtypes
def test_equal_states_have_residual_zero(target_dtype):
    targets = random(3, 77, dtype=target_dtype)
    assert residuals(targets[:, None].expand(3, 2, 77), targets).eq(0).all()


def test_zero_target_does_not_divide_by_zero():
    predictions = torch.stack([torch.zeros(40), torch.full((40,), 1e-12)])[None]
    found = residuals(predictions, torch.zeros(1, 40))
    assert found[0, 0] == 0
    check(found, predictions, torch.zeros(1, 40))


@given(st.integers(0, 99), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.sampled_from(all_dtypes))
@settings(deadline=None, max_examples=60)
def test_bad_values_reach_their_own_rows_and_no_other(position, bad, dtypes):
    predictions, targets = random(3, 4, 100, dtype=dtypes[0]), random(3, 100, dtype=dtypes[1], seed=1)
    predictions[0, 1, position] = bad
    targets[2, position] = bad
    found = residuals(predictions, targets)
    assert found[2].isnan().all()  # inf / inf, too
    assert found[0, 1].isnan() if bad != bad else found[0, 1] == float("inf")
    check(found, predictions, targets, equal_nan=True)


@both_dtypes
def test_threads_do_not_change_a_bit(target_dtype):
    # Enough work for four threads, in shares that begin and end within a batch entry.
    predictions, targets = random(3, 701, 1003, dtype=target_dtype), random(3, 1003, dtype=target_dtype, seed=1)
    alone = residuals(predictions, targets, threads=1)
    check(alone, predictions, targets)
    for threads in (0, 2, 3, 4, 64):
        assert torch.equal(residuals(predictions, targets, threads), alone), f"{threads} threads"


@pytest.mark.parametrize("name", ["B", "C", "D", "threads"])
def test_negative_sizes_are_named(name):
    strides = {"pred_stride_b": 0, "pred_stride_c": 0, "target_stride_b": 0}
    sizes = {"B": 0, "C": 0, "D": 0, "threads": 1} | {name: -3}
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got -3"):
        C.residuals(0, 0, 0, **sizes, **strides, pred_is_bf16=False, target_is_bf16=False)


def test_build_info():
    info = C.build_info()
    assert set(info) == {"version", "compiler", "clones", "sanitized"}
    assert info["sanitized"] == ("INVERT_FAST_SANITIZE" in os.environ), "not the library that was meant"
    assert "default" in info["clones"]
