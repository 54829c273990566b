"""csrc/product.cpp and the linear layers that run on it, against float64."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from invert_fast.ops import native
from invert_fast.ops.linear import pack_linears

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multiply(x: Tensor, matrix: Tensor, bias: Tensor | None, threads: int = 1) -> Tensor:
    """The op, with a canary behind its output and columns of the rows that it must leave alone."""
    (M, K), N = x.shape, matrix.shape[1]
    packed = torch.empty(C.packed_size(K, N))
    C.pack_matrix(matrix.data_ptr(), *matrix.stride(), K, N, packed.data_ptr())
    out = torch.full((M + 1, N + 3), -7.0)
    C.product(
        *(x.data_ptr(), packed.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
        *(M, K, N, x.stride(0), out.stride(0), threads),
    )
    assert out[M:].eq(-7).all(), "the op wrote past its rows"
    assert out[:, N:].eq(-7).all(), "the op wrote past its columns"
    return out[:M, :N]


@given(st.data())
def test_matches_float64_at_any_shape_and_stride(data):
    draw = data.draw
    M, K, N = draw(st.integers(0, 20)), draw(st.integers(0, 70)), draw(st.integers(0, 70))
    pad, seed = draw(st.integers(0, 9)), draw(st.integers(0, 2**31))
    x = rows(M, K + pad, seed=seed)[:, pad:]
    matrix = rows(K, N + pad, seed=seed + 1)[:, pad:]
    if draw(st.booleans()):
        matrix = matrix.t().contiguous().t()
    bias = rows(N, seed=seed + 2) if draw(st.booleans()) else None
    found = multiply(x, matrix, bias, draw(st.integers(0, 4)))
    wanted = x.double() @ matrix.double() + (0 if bias is None else bias.double())
    size = x.double().abs() @ matrix.double().abs() + 1  # what rounding is relative to
    assert ((found.double() - wanted).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize(("M", "K", "N"), [(1, 256, 768), (64, 256, 1024), (45, 1024, 256), (129, 768, 50)])
def test_as_exact_as_pytorch_at_the_widths_of_models(M, K, N):
    x, matrix, bias = rows(M, K), rows(K, N, seed=1), rows(N, seed=2)
    wanted = x.double() @ matrix.double() + bias.double()
    ours = (multiply(x, matrix, bias, 2).double() - wanted).abs().mean()
    theirs = (torch.addmm(bias, x, matrix).double() - wanted).abs().mean()
    assert ours <= 3 * theirs


def test_neither_threads_nor_other_rows_change_a_bit():
    x, matrix, bias = rows(131, 300), rows(300, 1000, seed=1), rows(1000, seed=2)
    alone = torch.cat([multiply(row[None], matrix, bias) for row in x])
    for threads in (0, 1, 2, 5, 64):
        assert torch.equal(multiply(x, matrix, bias, threads), alone), f"{threads} threads"
        assert torch.equal(multiply(x[7:20], matrix, bias, threads), alone[7:20]), f"{threads} threads"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_spoilt_row_spoils_no_other(bad):
    x, matrix = rows(9, 40), rows(40, 50, seed=1)
    spoilt = x.clone()
    spoilt[4, 7] = bad
    found, wanted = multiply(spoilt, matrix, None), multiply(x, matrix, None)
    assert not found[4].isfinite().any()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found[others], wanted[others])


@pytest.mark.parametrize("name", ["rows", "width", "columns", "threads"])
def test_negative_sizes_are_named(name):
    sizes = {"rows": 0, "width": 0, "columns": 0, "threads": 1} | {name: -3}
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got -3"):
        C.product(0, 0, 0, 0, **sizes, x_stride=0, out_stride=0)


@pytest.fixture
def fast(monkeypatch):
    """Packs whatever vectors this machine has: the op is correct on all, only not the fastest on some."""
    monkeypatch.setattr(native, "_C", _Fast())


class _Fast:
    def __getattr__(self, name: str):
        return (lambda: True) if name == "tiles_are_widest" else getattr(C, name)


def layers(packed: bool) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(24, 40), Conv1D(56, 40), nn.Linear(56, 8, bias=False)).requires_grad_(False)
    if packed:
        pack_linears(body)
        assert [type(m).__name__ for m in body] == ["PackedLinear", "PackedConv1D", "PackedLinear"]
        assert all(isinstance(m, kind) for m, kind in zip(body, (nn.Linear, Conv1D, nn.Linear), strict=True))
    return body


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 24), (4, 24), (2, 5, 24), (0, 24), (2, 0, 24)])
def test_layers_and_their_gradients_are_those_of_pytorch(shape):
    ours, theirs = layers(True), layers(False)
    x = rows(*shape).requires_grad_()
    found, wanted = ours(x), theirs(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    weight = rows(*wanted.shape, seed=1)
    (grad,), (wanted_grad,) = torch.autograd.grad(found, x, weight), torch.autograd.grad(wanted, x, weight)
    torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.usefixtures("fast")
def test_strided_inputs():
    x = rows(24, 9).t()
    torch.testing.assert_close(layers(True)(x), layers(False)(x))
    x = rows(9, 48)[:, ::2]
    torch.testing.assert_close(layers(True)(x), layers(False)(x))


@pytest.mark.usefixtures("fast")
def test_copies_carry_no_packed_weights_and_other_precisions_run_as_before():
    ours, theirs = layers(True), layers(False)
    ours(rows(9, 24))
    assert "_packs" in vars(ours[0])
    copied = copy.deepcopy(ours).to(torch.bfloat16)
    assert "_packs" not in vars(copied[0])
    x = rows(9, 24).bfloat16()
    torch.testing.assert_close(copied(x), copy.deepcopy(theirs).to(torch.bfloat16)(x))
    changed = copy.deepcopy(ours)
    changed[0].weight += 1
    assert not torch.allclose(changed(rows(9, 24)), ours(rows(9, 24)))


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
    monkeypatch.setattr(import_module("invert_fast.ops.linear"), "MOST_BYTES", 8 * 8 * 4 + 8 * 4 - 1)
    body = nn.Sequential(nn.Linear(8, 8))
    pack_linears(body)
    assert type(body[0]) is nn.Linear


def test_ops_are_the_same_on_a_team_and_on_threads_of_their_own():
    x, matrix, bias = rows(64, 300), rows(300, 1000, seed=1), rows(1000, seed=2)
    try:
        C.share_team(0)
        wanted = multiply(x, matrix, bias, 4)
        C.share_team(native.team_of_torch())
        for _ in range(50):
            F.relu(rows(1 << 16))  # PyTorch's own use of the team between ours
            assert torch.equal(multiply(x, matrix, bias, 4), wanted)
    finally:
        C.share_team(native.team_of_torch())


def test_the_team_is_found_where_pytorch_runs_on_openmp():
    if "libgomp" not in str(torch.__config__.parallel_info()) and "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this PyTorch does not run on OpenMP")
    if not (native.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").exists():
        pytest.skip("this PyTorch has no lib/libtorch_cpu.so to look in")
    assert native.team_of_torch() != 0
