"""The CUDA C++ ops on a GPU, and what can be said of the module without one. Their indices are checked on the CPU, see
test_cuda_on_cpu.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from invert_fast import ops
from invert_fast.ops import native

from .distances import check as check_nearest
from .inputs import DTYPES, METRICS, random
from .residuals import check as check_residuals

cuda = pytest.importorskip("invert_fast._cuda", reason="invert_fast._cuda is not built (INVERT_FAST_CUDA, nvcc)")

SHARED_LIMIT = 48 << 10  # bytes a block gets on every target without asking for more


@pytest.fixture
def gpu() -> torch.device:
    if not cuda.device_count():
        pytest.skip("no GPU")
    return torch.device("cuda")


# ---- without a GPU


def cuobjdump() -> str:
    """The CUDA toolkit's, or the one that Triton brings."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="neither CUDA's cuobjdump nor Triton, which brings one, is here")
        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return found


def test_no_kernel_spills_a_register_on_any_target():
    """Reads what the built module holds; prints it as a table (`pytest -s`)."""
    text = subprocess.run([cuobjdump(), "-res-usage", cuda.__file__], capture_output=True, text=True, check=True).stdout
    targets = re.split(r"^arch = (sm_\d+)$", text, flags=re.M)[1:]
    names, rows = [], []
    for target, kernels in zip(targets[::2], targets[1::2], strict=True):
        pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
        for name, *needs in re.findall(pattern, kernels):
            names.append(name)
            rows.append((target, *map(int, needs)))
    print(f"\n{'kernel':60} target  registers  stack  shared  local")
    for name, row in zip(plain(names), rows, strict=True):
        print("{:60} {:6} {:10} {:6} {:7} {:6}".format(name, *row))
    real = {f"sm_{name.split('-')[0]}" for name in cuda.architectures() if not name.endswith("virtual")}
    assert {row[0] for row in rows} == real
    for kernel in ("residual_rows", "rank_stream", "rank_tile", "unpack"):
        assert {row[0] for name, row in zip(names, rows, strict=True) if kernel in name} == real, kernel
    spilled = [(name, row) for name, row in zip(names, rows, strict=True) if row[2] or row[4]]
    assert spilled == [], "registers are spilled"
    assert [row for row in rows if row[3] > SHARED_LIMIT] == []


def plain(names: list[str]) -> list[str]:
    """As in the source, without what is the same everywhere."""
    if shutil.which("c++filt") is None:
        return names
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = (
        re.sub(r"invert_fast::|\(anonymous namespace\)::|^void |\(.*", "", line.replace("(int)", ""))
        for line in text.splitlines()
    )
    return [line.replace("unsigned short", "bf16") for line in short]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": -3}, "B must be >= 0, got -3"),
        ({"V": -3}, "V must be >= 0, got -3"),
        ({"D": -3}, "D must be >= 0, got -3"),
        ({"V": 1 << 33}, "V must fit in 32 bits"),
        ({"metric": 4}, "metric must be 0 to 3, got 4"),
    ],
    ids=str,
)
def test_wrong_sizes_are_named(change, message):
    sizes = {"B": 1, "V": 1, "D": 1, "parts": 1, "metric": 0} | change
    strides = {"query_stride": 1, "table_stride": 1, "banned_stride": 1}
    with pytest.raises(ValueError, match=message):
        cuda.rank_rows(0, 0, 0, 0, **sizes, **strides, table_is_bf16=False, keep_all=False, stream=0)


def test_nothing_asked_needs_no_gpu():
    cuda.rank_rows(*[0] * 4, 0, 5, 8, 1, 8, 8, 0, 0, False, False, 0)
    cuda.unpack_ranks(0, 0, 0, 0, 1, 0)


@pytest.mark.parametrize("op", ["nearest_tokens", "residuals"])
def test_tensors_elsewhere_are_refused(op):
    arguments = (random(2, 4), random(5, 4), 1) if op == "nearest_tokens" else (random(2, 3, 4), random(2, 4))
    with pytest.raises(ValueError, match=r"got tensors on \['cpu'\]: expected all on one GPU"):
        getattr(ops, op)(*arguments, backend="cuda")


@pytest.mark.parametrize("op", ["nearest_tokens", "residuals"])
def test_a_missing_module_is_named(op, monkeypatch):
    monkeypatch.setattr(native, "_cuda", None)
    arguments = (random(2, 4), random(5, 4), 1) if op == "nearest_tokens" else (random(2, 3, 4), random(2, 4))
    with pytest.raises(ValueError, match=r"needs invert_fast\._cuda: install with INVERT_FAST_CUDA=on"):
        getattr(ops, op)(*arguments, backend="cuda")


def test_it_is_never_the_default():
    assert all(ops.choose(op, device) != "cuda" for op in ops.BACKENDS for device in ("cpu", "cuda"))


# ---- on a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("dtypes", [(p, t) for p in DTYPES for t in DTYPES], ids=str)
@pytest.mark.parametrize("width", [0, 1, 30, 768, 1001, 4096])
@pytest.mark.parametrize("offset", [0, 1])  # 1: rows start off the alignment of the wide loads
def test_residuals_match_float64(width, dtypes, offset, gpu):
    predictions = random(3, 7, width + offset, dtype=dtypes[0]).to(gpu)[:, :, offset:]
    targets = random(3, width + offset, dtype=dtypes[1], seed=1).to(gpu)[:, offset:]
    if width:
        predictions[1, 2, width // 2] = float("nan")
        targets[2, width - 1] = float("nan")
    found = ops.residuals(predictions, targets, backend="cuda")
    check_residuals(found, predictions, targets, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("B", "V", "D", "count"),
    [
        (1, 20011, 768, 1),
        (3, 9001, 1003, 1),
        (4, 700, 64, 700),
        (5, 9001, 768, 1),
        (16, 300, 40, 7),
        (65, 5003, 768, 1),
    ],
)
def test_nearest_tokens_match_float64(B, V, D, count, offset, metric, dtype, gpu):
    queries, table = random(B, D + offset).to(gpu), random(V, D + offset, seed=1, dtype=dtype).to(gpu)
    queries, table = queries[:, offset:], table[:, offset:]
    banned = random(B, V + 1, seed=2).to(gpu)[:, 1:] > 1
    found = ops.nearest_tokens(queries, table, count, metric, banned, backend="cuda")
    check_nearest(found, queries, table, metric, banned)


@pytest.mark.cuda
@pytest.mark.parametrize("metric", ["l1", "cosine"])
@pytest.mark.parametrize(("B", "count"), [(1, 1), (3, 70), (9, 1), (40, 70)])
def test_nearest_tokens_agree_with_triton_on_ties(B, count, metric, gpu):
    pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux)")
    table = random(10, 64, seed=1).repeat(60, 1).to(gpu)  # each row sixty times
    queries = random(B, 64).to(gpu)
    found = ops.nearest_tokens(queries, table, count, metric, backend="cuda")
    wanted = ops.nearest_tokens(queries, table, count, metric, backend="triton")
    assert torch.equal(found[1], wanted[1])
    for one in (found, wanted):
        check_nearest(one, queries, table, metric)


@pytest.mark.cuda
@pytest.mark.parametrize("B", [1, 6])
def test_a_table_beyond_two_to_the_31_elements(B, gpu):
    V, D = 1_100_000, 2048
    if torch.cuda.mem_get_info()[0] < 3 * V * D * 2:
        pytest.skip("less than 14 GB of GPU memory are free")
    table = torch.randn(V, D, dtype=torch.bfloat16, device=gpu)
    wanted = V - 1 - torch.arange(B, device=gpu) * 7
    _, ids = ops.nearest_tokens(table[wanted].float(), table, 1, backend="cuda")
    assert torch.equal(ids[:, 0], wanted)


@pytest.mark.cuda
def test_it_can_be_captured_in_a_graph(gpu):
    queries, table = random(3, 64).to(gpu), random(500, 64, seed=1).to(gpu)
    ops.nearest_tokens(queries, table, 1, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, ids = ops.nearest_tokens(queries, table, 1, backend="cuda")
    queries.copy_(table[[4, 400, 17]])
    graph.replay()
    assert ids[:, 0].tolist() == [4, 400, 17]
