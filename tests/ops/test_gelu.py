"""GELU of csrc/gelu.cpp against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from invert_fast import ops
from invert_fast.ops.gelu import Gelu

from ..limits import average, close
from .gelu import TERMS, check, formula, size
from .inputs import backends, random

_C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built: no C++ compiler was found")
pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("backend", backends("gelu"))
@pytest.mark.parametrize("spread", [1e-20, 1e-3, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (33,), (5, 129), (2, 3, 1024)], ids=str)
def test_value_and_gradient(shape, spread, backend):
    x, weight = random(*shape, seed=len(shape)) * spread, random(*shape, seed=9)
    check(lambda x: ops.gelu(x, backend=backend), x, weight, by_tanh=backend == "fused")


def test_exact_from_end_to_end_and_more_so_on_average():
    x = torch.linspace(-12, 12, 200_001)
    wanted, found = formula(x.double()), Gelu()(x)
    close(found, wanted, scale=size(x), terms=TERMS)
    assert (found.double() - wanted).abs().mean() <= average(x.square(), 1)


def test_far_out():
    far = torch.tensor([-math.inf, -1e30, -100.0, -9.9, 9.9, 100.0, 1e30, math.inf, 0.0]).requires_grad_()
    out = Gelu()(far)
    (grad,) = torch.autograd.grad(out.sum(), far)
    assert out[:4].abs().max() <= 1e-30
    assert grad[:4].abs().max() <= 1e-30
    close(out[4:], far[4:].double(), scale=far[4:], terms=TERMS)
    close(grad[4:], torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5]).double(), scale=1.0, terms=TERMS)
    spoilt = torch.full((9,), math.nan).requires_grad_()
    out = Gelu()(spoilt)
    assert out.isnan().all()
    assert torch.autograd.grad(out.sum(), spoilt)[0].isnan().all()


def test_neighbours_threads_and_layout_change_nothing():
    x = torch.randn(1031, generator=torch.Generator().manual_seed(0))
    whole = Gelu()(x)
    for start, length in [(0, 1), (1, 8), (3, 17), (1000, 31)]:
        assert torch.equal(Gelu()(x[start : start + length]), whole[start : start + length])
    wide = torch.randn(1100, 1000, generator=torch.Generator().manual_seed(1))
    out = torch.empty(2, *wide.shape)
    for row, threads in zip(out, (1, 3), strict=True):
        _C.gelu(wide.data_ptr(), row.data_ptr(), wide.numel(), threads)
    assert torch.equal(out[0], out[1])
    assert torch.equal(Gelu()(wide.T), out[0].T)


def test_other_precisions_are_pytorchs():
    x = torch.randn(64, dtype=torch.bfloat16)
    assert torch.equal(Gelu()(x), F.gelu(x, approximate="tanh"))
    assert torch.equal(Gelu()(x.double()), F.gelu(x.double(), approximate="tanh"))


def test_tensors_without_values_pass_through():
    with FakeTensorMode():
        x = torch.empty(3, 5, requires_grad=True)
        out = Gelu()(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
    assert out.shape == grad.shape == (3, 5)
