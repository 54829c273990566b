"""Every op on every backend that runs here, against the plain PyTorch way and the machine's own ceilings.

    pytest bench/bench_kernels.py --benchmark-only [--benchmark-json out.json]

The answer is checked against plain PyTorch before anything is timed. Bytes are those that must be read and written
once, operations those of the formula (|q − e| and its sum are two). Ceilings are measured in the same run: a copy of
256 MiB, a matrix product, and for L1 the additions that the registers can do.
"""

from __future__ import annotations

import functools
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from invert_fast import ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 3
V, D = 50_257, 768  # the vocabulary and width of GPT-2 small


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
    if DEVICE.type == "cuda" or ops._C is None:
        return product_ceiling() / 2
    threads, count = torch.get_num_threads(), 1 << 31
    return 2 * count * threads / min(ops._C.seconds_of_l1(count, threads) for _ in range(3)) / 1e9


@dataclass(frozen=True)
class Case:
    """What is timed. `plain` and `fused` give the same answer, `close` compares them."""

    name: str
    op: str
    plain: Callable[[], object]
    fused: Callable[[str], object]
    close: Callable[[object, object], None]
    bytes: int
    operations: int
    ceiling: Callable[[], float] = product_ceiling


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def nearest_case(B: int, metric: str, dtype: torch.dtype, count: int) -> Case:
    queries, table = random(B, D), random(V, D, seed=1).to(dtype)

    def plain():
        if metric == "l1":
            return torch.cdist(queries, table.float(), p=1).topk(count, largest=False)
        return (1 - F.normalize(queries) @ F.normalize(table.float()).T).topk(count, largest=False)

    def close(found, wanted):
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
        assert (found[1] == wanted[1]).float().mean() > 0.99  # neighbours within rounding may change places

    return Case(
        f"nearest_tokens {metric} {str(dtype)[6:]}, {count} for {B}",
        "nearest_tokens",
        plain,
        lambda backend: ops.nearest_tokens(queries, table, count, metric, backend=backend),
        close,
        table.nbytes + queries.nbytes + B * count * 12,
        2 * B * V * D,
        l1_ceiling if metric == "l1" else product_ceiling,
    )


def residuals_case(B: int, C: int) -> Case:
    predictions, targets = random(B, C, D), random(B, D, seed=1)

    def plain():
        return (predictions - targets[:, None]).norm(dim=-1) / targets.norm(dim=-1, keepdim=True)

    return Case(
        f"residuals {B} × {C}",
        "residuals",
        plain,
        lambda backend: ops.residuals(predictions, targets, backend=backend),
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0),
        predictions.nbytes + targets.nbytes + B * C * 4,
        3 * predictions.numel(),
    )


def adam_case(B: int) -> Case:
    """Plain PyTorch has one optimizer and one schedule a lane: lanes stand at steps of their own."""
    start, grad = random(B, D), random(B, D, seed=1)
    settings = {"lr": 0.1, "total_steps": 10_000}

    class Lane:
        def __init__(self, b: int):
            self.row = torch.nn.Parameter(start[b].clone())
            self.row.grad = grad[b].clone()
            self.optimizer = torch.optim.Adam([self.row], lr=settings["lr"])
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings["total_steps"])

        def step(self):
            torch.nn.utils.clip_grad_norm_([self.row], 1.0)
            self.optimizer.step()
            self.schedule.step()

    def steps_of(lanes: list[Lane]) -> None:
        for lane in lanes:
            lane.step()

    def fresh() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """proxies, both moments, steps"""
        zero = torch.zeros(B, D, device=DEVICE)
        return start.clone(), zero, zero.clone(), torch.zeros(B, dtype=torch.long, device=DEVICE)

    def step(backend: str, proxy: Tensor, mean: Tensor, square: Tensor, steps: Tensor) -> None:
        ops.adam_step(proxy, grad, mean, square, steps, active, **settings, backend=backend)

    active = torch.ones(B, dtype=torch.bool, device=DEVICE)
    lanes, state = [Lane(b) for b in range(B)], fresh()

    def close(backend, _) -> None:
        others, own = [Lane(b) for b in range(B)], fresh()
        steps_of(others)
        step(backend, *own)
        torch.testing.assert_close(own[0], torch.stack([lane.row.detach() for lane in others]), rtol=1e-5, atol=1e-6)

    def fused(backend: str) -> str:
        step(backend, *state)
        return backend  # `close` takes a fresh step with it

    return Case(
        f"adam_step {B} lanes", "adam_step", lambda: steps_of(lanes), fused, close, 7 * start.nbytes, 16 * start.numel()
    )


def attention_case(B: int, N: int, length: int) -> Case:
    """A fan-out of N candidates; plain PyTorch copies the prefix for each of them."""
    heads, d = 12, 64
    query, key, value = (random(B, heads, N, d, seed=i) for i in range(3))
    prefix_key, prefix_value = random(2, B, heads, length, d, seed=3)
    lengths = torch.full((B,), length, device=DEVICE)

    def plain():
        def rows(own: Tensor, prefix: Tensor) -> Tensor:  # [B·N, heads, length + 1, d]
            copies = prefix[:, None].expand(-1, N, -1, -1, -1)
            return torch.cat([copies, own.transpose(1, 2)[:, :, :, None]], 3).flatten(0, 1)

        alone = query.transpose(1, 2)[:, :, :, None].flatten(0, 1)
        out = F.scaled_dot_product_attention(alone, rows(key, prefix_key), rows(value, prefix_value))
        return out.view(B, N, heads, d)

    def fused(backend: str) -> Tensor:
        arguments = (query, key, value, prefix_key, prefix_value, lengths)
        return ops.prefix_attention(*arguments, scale=1 / math.sqrt(d), causal=False, backend=backend)

    return Case(
        f"prefix_attention {B} × {N} after {length}",
        "prefix_attention",
        plain,
        fused,
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5),
        4 * query.nbytes + 2 * prefix_key.nbytes,
        4 * B * heads * N * (length + 1) * d,
    )


CASES: dict[str, Callable[[], Case]] = {
    "nearest l1 fp32 1": lambda: nearest_case(1, "l1", torch.float32, 1),
    "nearest l1 bf16 1": lambda: nearest_case(1, "l1", torch.bfloat16, 1),
    "nearest l1 fp32 64": lambda: nearest_case(64, "l1", torch.float32, 1),
    "nearest l1 bf16 64, 64 nearest": lambda: nearest_case(64, "l1", torch.bfloat16, 64),
    "nearest cosine fp32 64": lambda: nearest_case(64, "cosine", torch.float32, 1),
    "residuals 64 × 256": lambda: residuals_case(64, 256),
    "adam 64": lambda: adam_case(64),
    "attention 16 × 16 after 64": lambda: attention_case(16, 16, 64),
}
if DEVICE.type == "cuda":  # enough to fill one; a CPU's share of the ceiling no longer changes
    CASES["nearest l1 fp32 256"] = lambda: nearest_case(256, "l1", torch.float32, 1)


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[Case, object, float]:
    """The case, the plain answer, and the time plain PyTorch takes for it."""
    made = CASES[request.param]()
    return made, made.plain(), seconds(made.plain, 2)


def runs_here(backend: str) -> bool:
    if backend == "triton":
        return DEVICE.type == "cuda" and ops._HAS_TRITON
    if backend == "cuda":
        return DEVICE.type == "cuda" and ops._cuda is not None
    return backend != "cpp" or (DEVICE.type == "cpu" and ops._C is not None)


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
