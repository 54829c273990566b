"""GELU of csrc/gelu.cpp against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from invert_fast.ops.gelu import Gelu

_C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built: no C++ compiler was found")


def formula(x: Tensor) -> Tensor:
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


@pytest.mark.parametrize("spread", [1e-20, 1e-3, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (33,), (5, 129), (2, 3, 1024)])
def test_value_and_gradient(shape, spread):
    generator = torch.Generator().manual_seed(len(shape))
    x = (torch.randn(shape, generator=generator) * spread).requires_grad_()
    weight = torch.randn(shape, generator=generator)
    exact = x.detach().double().requires_grad_()
    out, wanted = Gelu()(x), formula(exact)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), exact)
    assert (out.shape, grad.shape, out.dtype) == (x.shape, x.shape, torch.float32)
    assert torch.allclose(out.double(), wanted, rtol=1e-6, atol=1e-7 * spread)
    assert torch.allclose(grad.double(), wanted_grad, rtol=1e-6, atol=4e-6)


def test_about_as_exact_as_pytorch():
    x = torch.linspace(-12, 12, 200_001)
    wanted = formula(x.double())
    ours, theirs = (Gelu()(x).double() - wanted).abs(), (F.gelu(x, approximate="tanh").double() - wanted).abs()
    assert ours.max() <= 1.5 * theirs.max()
    assert ours.mean() <= 1.5 * theirs.mean()


def test_far_out():
    far = torch.tensor([-math.inf, -1e30, -100.0, -9.9, 9.9, 100.0, 1e30, math.inf, 0.0]).requires_grad_()
    out = Gelu()(far)
    (grad,) = torch.autograd.grad(out.sum(), far)
    assert torch.allclose(out, far.clamp_min(0), atol=1e-30)
    assert torch.allclose(grad, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.5]), atol=1e-30)
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
