"""Every op on every backend that runs here, against the plain PyTorch way and the machine's own ceilings.

    pytest bench/bench_kernels.py --benchmark-only [--benchmark-json out.json]

The answer is checked against plain PyTorch before anything is timed. Bytes are those that must be read and written
once, operations those of the formula (|q − e| and its sum are two). Ceilings are measured in the same run: a copy of
256 MiB, a matrix product, and for L1 the additions that the registers can do.
"""

from __future__ import annotations

import platform

import pytest
import torch
from ceilings import DEVICE, ROUNDS, copy_ceiling, seconds
from kernel_cases import CASES, Case

from invert_fast import ops
from invert_fast.ops import native, table


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[Case, object, float]:
    """The case, the plain answer, and the time plain PyTorch takes for it."""
    made = CASES[request.param]()
    return made, made.plain(), seconds(made.plain, 2)


def runs_here(backend: str) -> bool:
    if backend == "triton":
        return DEVICE.type == "cuda" and table.HAS_TRITON
    if backend == "cuda":
        return DEVICE.type == "cuda" and native._cuda is not None
    return backend != "cpp" or (DEVICE.type == "cpu" and native._C is not None)


@pytest.mark.parametrize("backend", ["cpp", "triton", "cuda", "fused", "reference"])
def bench_kernels(benchmark, case, backend, kernel_row):
    made, wanted, plain = case
    if backend not in ops.BACKENDS[made.op] or not runs_here(backend):
        pytest.skip(f"{made.op} has no backend {backend} for {DEVICE}")
    made.close(made.fused(backend), wanted)

    def timed():
        made.fused(backend)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(timed, rounds=ROUNDS, warmup_rounds=1)
    took = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "milliseconds": round(took * 1e3, 3),
        "plain_milliseconds": round(plain * 1e3, 3),
        "times_faster_than_plain": round(plain / took, 2),
        "gigabytes_per_second": round(made.bytes / took / 1e9, 2),
        "share_of_copy": round(made.bytes / took / 1e9 / copy_ceiling(), 3),
        "gigaoperations_per_second": round(made.operations / took / 1e9, 2),
        "share_of_arithmetic": round(made.operations / took / 1e9 / made.ceiling(), 3),
        "copy_ceiling": round(copy_ceiling(), 1),
        "arithmetic_ceiling": round(made.ceiling(), 1),
        "device": f"{DEVICE}, {torch.get_num_threads()} threads, {platform.machine()}",
        "torch": torch.__version__,
    }
    kernel_row(f"{made.name}: {backend}", benchmark.extra_info)
