"""Which precision matrix products run fastest in on this device: measured once, since no flag tells."""

from __future__ import annotations

import time
from functools import cache

import torch

_CLEARLY = 1.5  # bf16 has to be this many times as fast: it also has to convert


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where its products are clearly faster than fp32 ones, else fp32. For proposals only, never to verify."""
    a, b = torch.ones(512, 512, device=device), torch.ones(512, 512, device=device)
    full, half = _seconds(a, b), _seconds(a.bfloat16(), b.bfloat16())
    return torch.bfloat16 if half * _CLEARLY < full else torch.float32


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    best, products = float("inf"), 4 if a.is_cuda else 1  # on a GPU a single one is less than the clock can tell
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
