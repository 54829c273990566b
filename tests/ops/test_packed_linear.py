"""Linear layers that run on csrc/product.cpp: those of PyTorch, with their gradients, and no others."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from invert_fast.ops import native
from invert_fast.ops.linear import pack_linears, packed_bytes
from invert_fast.ops.table import choose

from ..limits import close
from .inputs import random

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")
LINEAR = import_module("invert_fast.ops.linear")
pytestmark = pytest.mark.numeric


@pytest.fixture
def fast(monkeypatch):
    """Packs whatever vectors this machine has: the op is correct on all, only not the fastest on some."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "_C", _Fast())
        choose.cache_clear()  # what was chosen before, with the vectors in use
        yield
    choose.cache_clear()


class _Fast:
    def __getattr__(self, name: str):
        return (lambda: True) if name == "tiles_are_wide" else getattr(C, name)


def layers(packed: bool) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(24, 40), Conv1D(56, 40), nn.Linear(56, 8, bias=False)).requires_grad_(False)
    if packed:
        pack_linears(body)
        assert [type(m).__name__ for m in body] == ["PackedLinear", "PackedConv1D", "PackedLinear"]
        assert all(isinstance(m, kind) for m, kind in zip(body, (nn.Linear, Conv1D, nn.Linear), strict=True))
    return body


def check(x: Tensor, weight: Tensor | None = None) -> None:
    """The packed layers at `x`, and their gradient by it for that of their answer, against float64."""
    __tracebackhide__ = True
    exact, sized = layers(False).double(), layers(False).double()
    for parameter in sized.parameters():
        parameter.abs_()
    terms = 24 + 40 + 56 + 3
    leaf, doubled, size = x.clone().requires_grad_(), x.double().requires_grad_(), x.double().abs().requires_grad_()
    found, wanted, scale = layers(True)(leaf), exact(doubled), sized(size)
    close(found, wanted, scale=scale, terms=terms)
    weight = torch.ones_like(found) if weight is None else weight
    (grad,), (wanted,) = (torch.autograd.grad(o, i, weight.to(o.dtype)) for o, i in ((found, leaf), (wanted, doubled)))
    (scale,) = torch.autograd.grad(scale, size, weight.double().abs())
    close(grad, wanted, scale=scale, terms=terms)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 24), (4, 24), (2, 5, 24), (0, 24), (2, 0, 24)], ids=str)
def test_layers_and_their_gradients_are_those_of_pytorch(shape):
    check(random(*shape), random(*shape[:-1], 8, seed=1))


@pytest.mark.usefixtures("fast")
def test_strided_inputs():
    check(random(24, 9).t())
    check(random(9, 48)[:, ::2])


@pytest.mark.usefixtures("fast")
def test_copies_carry_no_packed_weights_and_other_precisions_run_as_before():
    ours, theirs = layers(True), layers(False)
    ours(random(9, 24))
    assert "_packs" in vars(ours[0])
    copied = copy.deepcopy(ours).to(torch.bfloat16)
    assert "_packs" not in vars(copied[0])
    x = random(9, 24).bfloat16()
    assert torch.equal(copied(x), copy.deepcopy(theirs).to(torch.bfloat16)(x))
    changed = copy.deepcopy(ours)
    changed[0].weight += 1
    assert not torch.allclose(changed(random(9, 24)), ours(random(9, 24)))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("rows", [1, 5, 30])
def test_layers_published_in_bf16_give_the_same_from_half_as_many_bytes(rows, monkeypatch):
    def run(halved: bool) -> tuple[Tensor, Tensor, int]:
        body = nn.Sequential(*(layer.bfloat16().float() for layer in layers(False)))
        pack_linears(body)
        with monkeypatch.context() as patch:
            if not halved:
                patch.setattr(LINEAR, "pack_halved", lambda matrix: None)
            leaf = random(rows, 24).requires_grad_()
            out = body(leaf)
            (grad,) = torch.autograd.grad(out.sum(), leaf)
        packs = [pack for layer in body for pack, _ in vars(layer)["_packs"].values()]
        assert {pack.dtype for pack in packs} == {torch.bfloat16 if halved else torch.float32}
        return out.detach(), grad, packed_bytes(body)

    (ours, grad, size), (wanted, wanted_grad, _) = run(True), run(False)
    assert torch.equal(ours, wanted)
    assert torch.equal(grad, wanted_grad)
    assert size == 2 * (24 * 40 + 40 * 56 + 56 * 8)


@pytest.mark.usefixtures("fast")
def test_twice_as_large_a_body_is_packed_where_half_as_many_bytes_do(monkeypatch):
    monkeypatch.setattr(LINEAR, "MOST_BYTES", 8 * 8 * 4)
    for weight, kind in ((random(16, 8), "Linear"), (random(16, 8).bfloat16().float(), "PackedLinear")):
        body = nn.Sequential(nn.Linear(8, 16, bias=False)).requires_grad_(False)
        body[0].weight.copy_(weight)
        pack_linears(body)
        assert type(body[0]).__name__ == kind


@pytest.mark.usefixtures("fast")
def test_a_large_body_of_another_precision_is_not_looked_into(monkeypatch):
    """Its numbers are no fp32 ones: read as such, rows of odd width could not even be looked at."""
    monkeypatch.setattr(LINEAR, "MOST_BYTES", 9 * 16)
    body = nn.Sequential(nn.Linear(9, 16, bias=False)).bfloat16()
    pack_linears(body)
    assert type(body[0]) is nn.Linear


@pytest.mark.usefixtures("fast")
def test_tensors_without_values_stay_so():
    ours = layers(True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert ours(torch.empty(7, 24)).shape == (7, 8)


@pytest.mark.usefixtures("fast")
def test_only_plain_linear_layers_of_bodies_that_fit_are_packed(monkeypatch):
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    body = nn.Sequential(Scaled(8, 8), nn.Linear(8, 8))
    pack_linears(body)
    assert [type(m).__name__ for m in body] == ["Scaled", "PackedLinear"]
    monkeypatch.setattr(LINEAR, "MOST_BYTES", 8 * 8 * 4 + 8 * 4 - 1)
    body = nn.Sequential(nn.Linear(8, 8))
    pack_linears(body)
    assert type(body[0]) is nn.Linear
