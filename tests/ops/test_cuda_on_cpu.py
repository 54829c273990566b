"""The CUDA kernels themselves, run on the CPU: the same .cu files behind the same Python, compiled as C++ with what
`cuda_on_cpu/` makes of a block's threads, barriers, shuffles and asynchronous copies. Checks that every index is right;
says nothing of a GPU's own arithmetic or speed."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from ctypes import c_bool, c_char_p, c_int, c_int64, c_void_p
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invert_fast import ops
from invert_fast.ops import native

from ..limits import close
from .distances import check as check_nearest
from .distances import distances, roundings
from .inputs import DTYPES, random
from .residuals import check as check_residuals

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("cuda_on_cpu")
NO_RESERVE = 0x4000  # Linux: MAP_NORESERVE


def build(target: Path, *sources: Path, flags: tuple[str, ...] = ()) -> None:
    """CUDA sources as C++. Undefined behaviour, such as a wide load off its alignment, ends the process."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler was found, which the CUDA kernels are compiled with here")
    common = [
        "-std=c++17",
        "-O1",
        "-fno-strict-aliasing",
        "-Wno-unknown-pragmas",
        "-U_FORTIFY_SOURCE",
        "-I",
        FOLDER,
        *flags,
    ]
    common += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-x", "c++"]
    run = subprocess.run([compiler, *common, *sources, "-o", target], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("cuda") / "kernels.so"
    kernels = [ROOT / "csrc/cuda/nearest.cu", ROOT / "csrc/cuda/residuals.cu"]
    build(target, *kernels, FOLDER / "block.cpp", FOLDER / "ops.cpp", flags=("-shared", "-fPIC"))
    library = ctypes.CDLL(str(target))
    library.rank_parts.restype = c_int64
    library.rank_parts.argtypes = [c_int64, c_int64, c_int]
    for name in ("rank_rows", "unpack_ranks", "residuals"):
        getattr(library, name).restype = c_char_p
    library.rank_rows.argtypes = [*[c_void_p] * 4, *[c_int64] * 7, c_int, c_bool, c_bool]
    library.unpack_ranks.argtypes = [*[c_void_p] * 3, c_int64, c_int64]
    library.residuals.argtypes = [*[c_void_p] * 3, *[c_int64] * 6, c_bool, c_bool]
    return library


class Module:
    """What `invert_fast._cuda` offers, with a canary behind and in place of everything that a kernel should write."""

    CANARY = -7  # no rank: its upper half would be a NaN

    def __init__(self, library: ctypes.CDLL):
        self.library, self.calls = library, 0

    def _call(self, name: str, *arguments) -> None:
        self.calls += 1
        message = getattr(self.library, name)(*arguments)
        if message:
            raise RuntimeError(f"{name}: {message.decode()}")

    def rank_parts(self, device: int, B: int, V: int) -> int:
        return self.library.rank_parts(B, V, 1)  # of a GPU with one multiprocessor: rows are left for a second round

    def rank_rows(self, queries, table, banned, ranks, B, V, D, parts, *rest) -> None:
        *rest, keep_all, _ = rest
        size = B * (V if keep_all else parts)
        written = torch.full((size + 1,), self.CANARY)
        self._call("rank_rows", queries, table, banned, written.data_ptr(), B, V, D, parts, *rest, keep_all)
        assert (written == self.CANARY).nonzero().flatten().tolist() == [size], "not every rank, or more, was written"
        ctypes.memmove(ranks, written.data_ptr(), size * 8)

    def unpack_ranks(self, ranks, distances, ids, count, parts, _) -> None:
        self._call("unpack_ranks", ranks, distances, ids, count, parts)

    def residuals(self, predictions, targets, out, B, C, *rest) -> None:
        written = torch.full((B * C + 1,), float(self.CANARY))
        self._call("residuals", predictions, targets, written.data_ptr(), B, C, *rest[:-1])
        assert (written == self.CANARY).nonzero().flatten().tolist() == [B * C]
        ctypes.memmove(out, written.data_ptr(), B * C * 4)


@pytest.fixture(params=[(False, False), (True, True)], ids=["rising, copies late", "falling, copies at once"])
def module(request, library, monkeypatch) -> Module:
    """In place of the GPU's: `backend="cuda"` then takes CPU tensors."""
    library.set_order(*map(c_bool, request.param))
    made = Module(library)
    for name in ("nearest_tokens", "residuals"):
        monkeypatch.setattr(import_module(f"invert_fast.ops.{name}"), "_cuda", made)
    monkeypatch.setattr(native, "stream", lambda *tensors: 0)
    return made


def within(values: Tensor, margin: int) -> Tensor:
    """The same values as a view into a larger tensor of NaN, which nothing may read. Where the width and the margin are
    multiples of 8, rows keep the alignment of wide loads."""
    around = values.new_full((len(values) + 2, values.shape[1] + 2 * margin), torch.nan)
    view = around[1:-1, margin : margin + values.shape[1]]
    view.copy_(values)
    return view


# Queries, rows, width, nearest: each kernel and its last block, warp, tile and slice full, ragged and tiny.
SHAPES = [
    *((1, 140, 136, 1), (1, 37, 64, 5), (2, 70, 40, 1), (4, 33, 8, 33), (3, 1, 7, 1)),
    *((5, 130, 33, 1), (16, 128, 48, 3), (17, 257, 40, 1), (70, 131, 24, 2), (2, 3, 0, 1), (6, 3, 0, 2)),
]


FP32, BF16 = DTYPES
CASES = [("l1", FP32), ("l1", BF16), ("l2", BF16), ("cosine", FP32), ("cosine", BF16), ("dot", FP32)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("metric", "dtype"), CASES, ids=str)
def test_nearest_tokens_at_every_edge_of_its_tiles(shape, metric, dtype, module):
    B, V, D, count = shape
    banned = (random(B, V + 3, seed=2) > 0.8)[:, 3:]
    banned[B // 2] = True
    for margin in (8, 1):  # wide loads where the width is a multiple of 8, and none
        queries, table = within(random(B, D), margin), within(random(V, D, seed=1, dtype=dtype), margin)
        found = ops.nearest_tokens(queries, table, count, metric, banned, backend="cuda")
        check_nearest(found, queries, table, metric, banned)
    assert module.calls == 4


@pytest.mark.parametrize("metric", ["l1", "cosine"])
@pytest.mark.parametrize("count", [1, 31])
@pytest.mark.parametrize("B", [1, 3, 7, 17])
def test_ties_across_warps_and_tiles_go_to_the_lower_id(metric, count, B, module):
    table = random(10, 8, seed=1).repeat(30, 1)  # each row thirty times
    _, ids = ops.nearest_tokens(random(B, 8), table, count, metric, backend="cuda")
    for row in ids.tolist():
        for start in range(0, count, 30):
            run = row[start : start + 30]
            assert run == list(range(run[0] % 10, 300, 10))[: len(run)]


def at_the_edge(values: Tensor) -> Tensor:
    """The same values, behind which lies a page that ends the process of whoever reads it."""
    size = values.nbytes + -values.nbytes % mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    last = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    assert ctypes.CDLL(None).mprotect(c_void_p(last), mmap.PAGESIZE, 0) == 0
    flat = torch.frombuffer(pages, dtype=values.dtype, count=values.numel(), offset=size - values.nbytes)
    return flat.view(values.shape).copy_(values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [7, 24])  # narrow, wide
@pytest.mark.parametrize("B", [1, 3, 6, 18])
def test_nothing_behind_the_last_row_query_or_ban_is_read(B, width, dtype, module):
    queries, table = at_the_edge(random(B, width)), at_the_edge(random(13, width, seed=1, dtype=dtype))
    banned = at_the_edge(random(B, 13, seed=2) > 0.8)
    _, ids = ops.nearest_tokens(queries, table, 1, "l1", banned, backend="cuda")
    assert torch.equal(ids[:, 0], distances(queries, table, "l1", banned).argmin(-1))


@pytest.mark.parametrize("B", [2, 6])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_or_infinitely_far_is_not_returned(B, count, bad, module):
    queries, table = random(B, 40), random(180, 40, seed=1)
    table[2:, 7], queries[1, 3] = bad, torch.nan
    values, ids = ops.nearest_tokens(queries, table, count, backend="cuda")
    assert (ids[1] == -1).all()
    assert values[1].eq(torch.inf).all()
    others = [b for b in range(B) if b != 1]
    assert set(ids[others].flatten().tolist()) - {-1} <= {0, 1}
    assert (ids[others] >= 0).sum(1).eq(min(count, 2)).all()


@pytest.mark.parametrize("B", [1, 5])
def test_zeros_of_either_sign_are_equal_and_the_farthest_apart_still_in_order(B, module):
    table = torch.tensor([[0.0], [-0.0], [3e38], [-3e38]])
    values, ids = ops.nearest_tokens(torch.ones(B, 1), table, 4, "dot", backend="cuda")
    assert ids.tolist() == [[2, 0, 1, 3]] * B
    assert torch.equal(values, -table[ids[0]].T.expand(B, 4))


@pytest.mark.parametrize("B", [1, 5, 17])
def test_rows_beyond_two_to_the_31_elements_are_found(B, module):
    """Rows and bans far apart, in memory that is promised and never filled."""
    step, D, V = (1 << 31) + 8, 8, 3

    def far(rows: int, dtype: torch.dtype) -> Tensor:
        pages = mmap.mmap(-1, (rows * step) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
        return torch.frombuffer(pages, dtype=dtype)

    table = far(V, torch.bfloat16).as_strided((V, D), (step, 1)).copy_(random(V, D))
    banned = far(B, torch.bool).as_strided((B, V), (step, 1))
    banned[torch.arange(B), torch.arange(B) % V] = True
    queries = table[torch.arange(B) % V].float()
    values, ids = ops.nearest_tokens(queries, table, 1, "l1", banned, backend="cuda")
    wanted = distances(queries, table, "l1", banned).min(-1)
    assert torch.equal(ids[:, 0], wanted.indices)
    close(values[:, 0], wanted.values, scale=wanted.values, terms=roundings(D, "l1"))


def test_a_grid_that_no_gpu_takes_and_parts_of_another_plan_are_errors(library):
    arguments = [16, 16, 0, 16, 1 << 40, 1, 8, 1, 8, 8, 0, 0, False, False]
    assert library.rank_rows(*arguments) == b"CUDA error 9"  # cudaErrorInvalidConfiguration
    arguments[4], arguments[7] = 5, 2
    assert library.rank_rows(*arguments) == b"CUDA error 1"  # cudaErrorInvalidValue


@pytest.mark.parametrize("prediction_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 256), (3, 2, 300), (1, 5, 3), (2, 2, 0)], ids=str)
def test_residuals_in_mixed_precision_and_at_strides(shape, prediction_dtype, target_dtype, module):
    B, C, D = shape
    for margin in (8, 1):
        predictions = within(random(C * B, D, dtype=prediction_dtype), margin)
        predictions = predictions.unflatten(0, (C, B)).transpose(0, 1)
        targets = within(random(B, D, seed=1, dtype=target_dtype), margin)
        found = ops.residuals(predictions, targets, backend="cuda")
        check_residuals(found, predictions, targets)


def test_the_faults_that_a_gpu_would_not_forgive_are_noticed(tmp_path):
    """`faults.cu` has a sound kernel, and the same with one fault each: what they say, in both orders."""
    build(tmp_path / "faults", FOLDER / "faults.cu", FOLDER / "block.cpp")
    said = subprocess.run([tmp_path / "faults"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(": ") for line in said] == [
        ["sound", "right", "right"],
        ["no first barrier", "wrong", "wrong"],
        ["no second barrier", "wrong", "wrong"],
        ["a barrier for half of the block", *["thread 0 waits for one that never comes"] * 2],
        ["no wait for a copy", "wrong", "right"],  # which is why there are two orders
        ["a copy into what is still read", "right", "wrong"],
        ["a shuffle of half a warp", *["thread 0 waits for one that never comes"] * 2],
        ["shuffles that differ", *["lanes of a warp make different shuffles"] * 2],
        ["a misaligned copy", *["a copy that no GPU makes"] * 2],
    ]
