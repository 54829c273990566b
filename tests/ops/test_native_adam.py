"""The compiled `adam_step` against the reference formula, for every setting, stride and thread count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from invert_fast.kernels import reference
from torch import Tensor

from .adam import check

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")
pytestmark = pytest.mark.numeric


def lanes(B: int, D: int, seed: int = 0, pad: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """proxy, grad, exp_avg, exp_avg_sq as views of wider tables; steps; active."""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(B, D + (i + 1) * pad, generator=generator)[:, i * pad : i * pad + D] for i in range(4)]
    tables[3].abs_()
    steps = torch.randint(0, 30, (B,), generator=generator)
    return tables, steps, torch.rand(B, generator=generator) < 0.7


def adam_step(tables, steps, active, threads=1, clip=1.0, betas=(0.9, 0.999), **settings) -> None:
    B, D = tables[0].shape
    C.adam_step(
        *(t.data_ptr() for t in (*tables, steps, active)),
        *(B, D, *(t.stride(0) for t in tables)),
        **{"lr": 0.1, "total_steps": 20, "weight_decay": 0, "eps": 1e-8} | settings,
        clip=math.inf if clip is None else clip,
        beta1=betas[0],
        beta2=betas[1],
        threads=threads,
    )


@given(st.data())
def test_is_the_reference_step(data):
    draw = data.draw
    tables, steps, active = lanes(
        draw(st.integers(0, 5)), draw(st.integers(0, 150)), draw(st.integers(0, 2**31)), draw(st.integers(0, 3))
    )
    settings = {
        "lr": draw(st.floats(1e-4, 1.0)),
        "total_steps": draw(st.integers(1, 40)),  # some lanes are past the end of their schedule
        "clip": draw(st.none() | st.floats(0.01, 100.0)),
        "weight_decay": draw(st.sampled_from([0, 0.01, 0.5])),
        "betas": draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9)])),
        "eps": draw(st.sampled_from([1e-8, 1e-3])),
    }
    wanted, taken = [t.double() for t in tables], steps.clone()
    reference.adam_step(*wanted, taken, active, **settings)
    before, taken_before = [t.clone() for t in tables], steps.clone()
    adam_step(tables, steps, active, draw(st.integers(0, 3)), **settings)
    assert torch.equal(steps, taken)
    check((tables[0], *tables[2:]), (wanted[0], *wanted[2:]), before, taken_before, **settings)
    for found, old in zip(tables, before, strict=True):
        assert torch.equal(found[~active], old[~active]), "a lane that is not active was touched"


def test_what_lies_between_the_rows_is_not_touched():
    wide = torch.full((3, 50), 7.0)
    tables = [wide.clone()[:, 10:43] for _ in range(4)]
    adam_step(tables, torch.zeros(3, dtype=torch.long), torch.ones(3).bool())
    for i in (0, 2, 3):
        whole = tables[i]._base
        assert whole is not None
        assert whole[:, :10].eq(7).all()
        assert whole[:, 43:].eq(7).all()
        assert whole[:, 10:43].ne(7).all()


def test_threads_do_not_change_a_bit():
    alone = None
    for threads in (1, 0, 2, 3, 64):
        tables, steps, active = lanes(67, 33_000)
        adam_step(tables, steps, active, threads)
        alone = alone or tables
        assert all(torch.equal(a, b) for a, b in zip(tables, alone, strict=True)), f"{threads} threads"


def test_a_bad_gradient_stays_in_its_lane():
    tables, steps, _ = lanes(4, 40)
    tables[1][2, 3] = torch.nan
    adam_step(tables, steps, torch.ones(4).bool())
    assert [bool(row.isfinite().all()) for row in tables[0]] == [True, True, False, True]
