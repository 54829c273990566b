"""What this machine can do at best, measured in the run that is compared with it."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from invert_fast.ops import native

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 3


def seconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median of a few calls, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@functools.cache
def copy_ceiling() -> float:
    """GB/s read and written by a large copy."""
    source = torch.ones(1 << 26, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9


@functools.cache
def product_ceiling() -> float:
    """G-op/s of an fp32 matrix product."""
    n = 8192 if DEVICE.type == "cuda" else 1536
    a = torch.ones(n, n, device=DEVICE)
    return 2 * n**3 / seconds(lambda: a @ a) / 1e9


@functools.cache
def l1_ceiling() -> float:
    """G-op/s of differences and additions in registers; of a matrix product where they cannot be measured, or halved:
    an addition takes the place of a multiplication with it."""
    if DEVICE.type == "cuda" or native._C is None:
        return product_ceiling() / 2
    threads, count = torch.get_num_threads(), 1 << 31
    return 2 * count * threads / min(native._C.seconds_of_l1(count, threads) for _ in range(3)) / 1e9
