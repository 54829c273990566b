"""`linear`, csrc/product.cpp and csrc/scores.cpp against float64, alone and on PyTorch's team of threads."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import ops
from invert_fast.ops import native

from ..limits import average
from .inputs import backends, random
from .products import check

C = pytest.importorskip("invert_fast._C", reason="invert_fast._C is not built (it needs a C++ compiler)")
linear_op = import_module("invert_fast.ops.linear")
pytestmark = pytest.mark.numeric


def multiply(x: Tensor, matrix: Tensor, bias: Tensor | None, threads: int = 1, halved: bool = False) -> Tensor:
    """The op, with a canary behind its output and columns of the rows that it must leave alone."""
    (M, K), N = x.shape, matrix.shape[1]
    packed = torch.empty(C.packed_size(K, N), dtype=torch.bfloat16 if halved else torch.float32)
    assert C.pack_matrix(matrix.data_ptr(), *matrix.stride(), K, N, packed.data_ptr(), halved)
    out = torch.full((M + 1, N + 3), -7.0)
    C.product(
        *(x.data_ptr(), packed.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
        *(M, K, N, x.stride(0), out.stride(0), halved, threads),
    )
    assert out[M:].eq(-7).all(), "the op wrote past its rows"
    assert out[:, N:].eq(-7).all(), "the op wrote past its columns"
    return out[:M, :N]


def score(x: Tensor, table: Tensor, bias: Tensor | None, threads: int = 1) -> Tensor:
    """x · tableᵀ + bias as csrc/scores.cpp has it, with the same canaries."""
    (M, K), N = x.shape, len(table)
    out = torch.full((M + 1, N + 3), -7.0)
    C.scores(
        *(x.data_ptr(), table.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
        *(M, K, N, x.stride(0), table.stride(0), out.stride(0), threads),
    )
    assert out[M:].eq(-7).all(), "the op wrote past its rows"
    assert out[:, N:].eq(-7).all(), "the op wrote past its columns"
    return out[:M, :N]


@given(st.data())
def test_scores_match_float64_at_any_shape_and_stride(data):
    draw = data.draw
    M, K, N = draw(st.integers(0, 20)), draw(st.integers(0, 70)), draw(st.integers(0, 300))
    pad, seed = draw(st.integers(0, 9)), draw(st.integers(0, 2**31))
    x, table = random(M, K + pad, seed=seed)[:, pad:], random(N, K + pad, seed=seed + 1)[:, pad:]
    bias = random(N, seed=seed + 2) if draw(st.booleans()) else None
    check(score(x, table, bias, draw(st.integers(0, 4))), x, table.T, bias)


def test_neither_threads_nor_other_rows_change_a_bit_of_scores():
    x, table, bias = random(23, 330), random(5000, 330, seed=1), random(5000, seed=2)
    alone = torch.cat([score(row[None], table, bias) for row in x])
    for threads in (0, 2, 5):
        assert torch.equal(score(x, table, bias, threads), alone), f"{threads} threads"
        assert torch.equal(score(x[7:18], table, bias, threads), alone[7:18]), f"{threads} threads"


@pytest.mark.parametrize("rows", [1, 9, 65])
def test_a_table_is_used_as_it_lies_and_passes_gradients_on(rows, monkeypatch):
    """Through the op: of few rows by csrc/scores.cpp, and never where a gradient is asked for."""
    called = []
    monkeypatch.setattr(linear_op, "_C", SimpleNamespace(scores=lambda *args: called.append(C.scores(*args))))
    x, table, bias = random(rows, 64), random(200, 64, seed=1), random(200, seed=2)
    check(ops.linear(x, table.T, bias, backend="cpp"), x, table.T, bias)
    assert len(called) == (rows <= linear_op.FEW_ROWS)
    for asked in (x, bias):
        asked.requires_grad_(True)
        ops.linear(x, table.T, bias, backend="cpp").sum().backward()
        assert torch.is_tensor(asked.grad)
        assert asked.grad.abs().max() > 0
        with torch.no_grad():
            ops.linear(x, table.T, bias, backend="cpp")
        asked.requires_grad_(False)
    assert len(called) == 3 * (rows <= linear_op.FEW_ROWS)
    strided = random(400, seed=2)[::2]
    check(ops.linear(x, table.T, strided, backend="cpp"), x, table.T, strided)


@pytest.mark.parametrize("backend", backends("linear"))
@pytest.mark.parametrize("shape", [(24,), (1, 24), (4, 24), (2, 5, 24), (0, 24), (33, 24)], ids=str)
def test_every_backend_matches_float64(shape, backend):
    matrix, bias = random(24, 40, seed=1), random(40, seed=2)
    for added in (bias, None):
        found = ops.linear(random(*shape), matrix, added, backend=backend)
        assert found.shape == (*shape[:-1], 40)
        check(found, random(*shape), matrix, added)
        check(
            ops.linear(random(*shape), matrix.t().contiguous().t(), added, backend=backend),
            random(*shape),
            matrix,
            added,
        )


@given(st.data())
def test_matches_float64_at_any_shape_and_stride(data):
    draw = data.draw
    M, K, N = draw(st.integers(0, 20)), draw(st.integers(0, 70)), draw(st.integers(0, 70))
    pad, seed = draw(st.integers(0, 9)), draw(st.integers(0, 2**31))
    x = random(M, K + pad, seed=seed)[:, pad:]
    matrix = random(K, N + pad, seed=seed + 1)[:, pad:]
    if draw(st.booleans()):
        matrix = matrix.t().contiguous().t()
    bias = random(N, seed=seed + 2) if draw(st.booleans()) else None
    found = multiply(x, matrix, bias, draw(st.integers(0, 4)))
    check(found, x, matrix, bias)


@given(st.data())
def test_a_matrix_of_bf16_numbers_gives_the_same_from_half_as_many_bytes(data):
    """To the bit, whatever tiles its rows and columns come to: of a few rows as it comes from memory, else widened."""
    draw = data.draw
    M, K, N = draw(st.integers(0, 40)), draw(st.integers(0, 70)), draw(st.integers(0, 100))
    seed, threads = draw(st.integers(0, 2**31)), draw(st.integers(0, 4))
    x, matrix = random(M, K + 3, seed=seed)[:, 3:], random(K, N, seed=seed + 1).bfloat16().float()
    if draw(st.booleans()):
        matrix = matrix.t().contiguous().t()
    bias = random(N, seed=seed + 2) if draw(st.booleans()) else None
    found = multiply(x, matrix, bias, threads, halved=True)
    assert torch.equal(found, multiply(x, matrix, bias))
    check(found, x, matrix, bias)


@pytest.mark.parametrize("value", [1 + 2.0**-8, 2.0**-133 + 2.0**-140, -3e38, float(torch.tensor(0.1))])
def test_a_matrix_with_one_other_number_is_never_halved(value):
    matrix = random(40, 50).bfloat16().float()
    assert linear_op.pack_halved(matrix) is not None
    assert linear_op.is_halved(matrix)
    for row, column in ((0, 0), (39, 49), (17, 5)):
        spoilt = matrix.clone()
        spoilt[row, column] = value
        for laid_out in (spoilt, spoilt.t().contiguous().t()):
            assert linear_op.pack_halved(laid_out) is None
        assert not linear_op.is_halved(spoilt)


@pytest.mark.parametrize("value", [float("inf"), -0.0, 2.0**-133, -(2.0**127)])
def test_what_bf16_holds_is_halved_whatever_it_is(value):
    matrix, x = random(40, 50).bfloat16().float(), random(3, 40)
    matrix[3, 7] = value
    packed = linear_op.pack_halved(matrix)
    assert packed is not None
    found = ops.linear(x, matrix, None, packed, backend="cpp")
    assert torch.equal(found, multiply(x, matrix, None))


@pytest.mark.parametrize(("M", "K", "N"), [(1, 256, 768), (64, 256, 1024), (45, 1024, 256), (129, 768, 50)])
def test_exact_at_the_widths_of_models_and_more_so_on_average(M, K, N):
    x, matrix, bias = random(M, K), random(K, N, seed=1), random(N, seed=2)
    found = multiply(x, matrix, bias, 2)
    check(found, x, matrix, bias)
    off = (found.double() - x.double() @ matrix.double() - bias.double()).abs().mean()
    assert off <= average(x.square() @ matrix.square() + bias.square(), K + 1)


@pytest.mark.parametrize("halved", [False, True])
def test_neither_threads_nor_other_rows_change_a_bit(halved):
    x, matrix, bias = random(131, 300), random(300, 1000, seed=1), random(1000, seed=2)
    matrix = matrix.bfloat16().float() if halved else matrix
    alone = torch.cat([multiply(row[None], matrix, bias, halved=halved) for row in x])
    for threads in (0, 1, 2, 5, 64):
        assert torch.equal(multiply(x, matrix, bias, threads, halved), alone), f"{threads} threads"
        assert torch.equal(multiply(x[7:20], matrix, bias, threads, halved), alone[7:20]), f"{threads} threads"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_spoilt_row_spoils_no_other(bad):
    x, matrix = random(9, 40), random(40, 50, seed=1)
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


def test_ops_are_the_same_on_a_team_and_on_threads_of_their_own():
    x, matrix, bias = random(64, 300), random(300, 1000, seed=1), random(1000, seed=2)
    try:
        C.share_team(0)
        wanted = multiply(x, matrix, bias, 4)
        C.share_team(native.team_of_torch())
        for _ in range(50):
            F.relu(random(1 << 16))  # PyTorch's own use of the team between ours
            assert torch.equal(multiply(x, matrix, bias, 4), wanted)
    finally:
        C.share_team(native.team_of_torch())


def test_the_team_is_found_where_pytorch_runs_on_openmp():
    if "libgomp" not in str(torch.__config__.parallel_info()) and "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this PyTorch does not run on OpenMP")
    if not (native.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").exists():
        pytest.skip("this PyTorch has no lib/libtorch_cpu.so to look in")
    assert native.team_of_torch() != 0
