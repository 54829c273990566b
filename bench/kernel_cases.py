"""What bench_kernels.py times: every op at the sizes of GPT-2 small, beside the plain PyTorch way of the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from ceilings import DEVICE, l1_ceiling, product_ceiling
from torch import Tensor

from invert_fast import ops
from invert_fast.ops import native
from invert_fast.ops.linear import pack, pack_halved
from invert_fast.ops.table import HAS_TRITON

V, D = 50_257, 768  # the vocabulary and width of GPT-2 small


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


def linear_case(rows: int) -> Case:
    """Weights packed beforehand, as in a pass that uses them often."""
    x, matrix, bias = random(rows, D), random(D, 4 * D, seed=1), random(4 * D, seed=2)
    packed = pack(matrix) if native._C is not None and DEVICE.type == "cpu" else None
    return Case(
        f"linear {rows} × {D} × {4 * D}",
        "linear",
        lambda: F.linear(x, matrix.T, bias),
        lambda backend: ops.linear(x, matrix, bias, packed, backend=backend),
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3),
        x.nbytes + matrix.nbytes + 4 * x.nbytes,
        2 * rows * matrix.numel(),
    )


def scores_case(rows: int) -> Case:
    """A table that nobody packed, larger than a cache: the head of a model."""
    x, table = random(rows, 2 * D), random(1 << 17, 2 * D, seed=1)
    return Case(
        f"linear {rows} × {2 * D} × {len(table)}, as it lies",
        "linear",
        lambda: F.linear(x, table),
        lambda backend: ops.linear(x, table.T, backend=backend),
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3),
        x.nbytes + table.nbytes + 4 * rows * len(table),
        2 * rows * table.numel(),
    )


def halved_case(rows: int) -> Case:
    """The same, published in bf16: a second copy of half as many bytes, of the same numbers."""
    x, table = random(rows, 2 * D), random(1 << 17, 2 * D, seed=1).bfloat16().float()
    packed = pack_halved(table.T) if native._C is not None and DEVICE.type == "cpu" else None
    return Case(
        f"linear {rows} × {2 * D} × {len(table)}, of bf16 numbers",
        "linear",
        lambda: F.linear(x, table),
        lambda backend: ops.linear(x, table.T, None, packed, backend=backend),
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3),
        x.nbytes + table.nbytes // 2 + 4 * rows * len(table),
        2 * rows * table.numel(),
    )


def gelu_case(rows: int) -> Case:
    x = random(rows, 4 * D)
    return Case(
        f"gelu {rows} × {4 * D}",
        "gelu",
        lambda: F.gelu(x, approximate="tanh"),
        lambda backend: ops.gelu(x, backend=backend),
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6),
        2 * x.nbytes,
        10 * x.numel(),
    )


def best_two_case(rows: int) -> Case:
    """Of the whole vocabulary; plain PyTorch writes the scores."""
    x, table, bias = random(rows, D), random(V, D, seed=1), random(V, seed=2)
    packed: dict[str, object] = {"cpp": pack(table.T)} if native._C is not None and DEVICE.type == "cpu" else {}
    if DEVICE.type == "cuda" and HAS_TRITON:
        from invert_fast.kernels.best_two_triton import coarse

        packed["triton"] = coarse(table)

    def plain():
        top, ids = torch.addmm(bias, x, table.T).topk(2)
        return ids[:, 0], top[:, 0] - top[:, 1]

    return Case(
        f"best_two of {V} for {rows}",
        "best_two",
        plain,
        lambda backend: ops.best_two(x, table, bias, packed.get(backend), backend=backend),
        lambda found, wanted: torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2),
        table.nbytes + x.nbytes,
        2 * rows * table.numel(),
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
    "linear 64": lambda: linear_case(64),
    "scores 8": lambda: scores_case(8),
    "bf16 scores 8": lambda: halved_case(8),
    "gelu 64": lambda: gelu_case(64),
    "best two 64": lambda: best_two_case(64),
}
if DEVICE.type == "cuda":  # enough to fill one; a CPU's share of the ceiling no longer changes
    CASES["nearest l1 fp32 256"] = lambda: nearest_case(256, "l1", torch.float32, 1)
    CASES["best two 8192"] = lambda: best_two_case(8192)
