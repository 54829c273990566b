"""What a backend from outside is tried on, op by op: even, ragged and tiny shapes, ties, nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Arguments of an op. in_place: which of them it changes; gradients: by which of them it is differentiated."""

    name: str
    given: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    in_place: tuple[int, ...] = ()
    gradients: tuple[int, ...] = ()

    def double(self) -> Case:
        """The same numbers in float64: what comes of them is the truth that others are measured by."""
        wide = (t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in self.given)
        return replace(self, given=tuple(wide))


class _Random:
    """Tensors from one seed. whole: small whole numbers, of which sums are exact in every precision, with ties."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device, self.generator = dtype, device, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype).to(self.device)

    def whole(self, *shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=self.generator).to(self.dtype).to(self.device)


def cases(op: str, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Those of an op, for its first argument in this precision."""
    yield from _CASES[op](_Random(dtype, device))


def _residuals(random: _Random) -> Iterator[Case]:
    for B, C, D in ((4, 8, 64), (3, 5, 17), (1, 1, 1), (2, 0, 8), (0, 3, 8)):
        yield Case(f"[{B}, {C}, {D}]", (random(B, C, D), random(B, D)))


def _nearest_tokens(random: _Random) -> Iterator[Case]:
    for B, V, D, count in ((4, 64, 32, 8), (3, 37, 17, 5), (2, 5, 3, 1), (1, 1, 1, 1)):
        for metric in ("l1", "l2", "dot"):
            queries, table = random.whole(B, D), random.whole(V, D)
            banned = torch.arange(V, device=random.device).expand(B, V) % 3 == 1
            yield Case(f"{metric}, [{B}, {D}] in [{V}, {D}]", (queries, table, count, metric))
            yield Case(f"{metric}, banned rows", (queries, table, count, metric, banned))
    yield Case("cosine", (random(3, 17), random(37, 17), 1, "cosine"))


def _adam_step(random: _Random) -> Iterator[Case]:
    for B, D in ((4, 32), (3, 17), (1, 1)):
        tables = [random(B, D), random(B, D), random(B, D), random(B, D).square()]
        step, active = torch.arange(B, device=random.device) * 3, torch.arange(B, device=random.device) % 2 == 0
        for more in ({}, {"clip": None, "weight_decay": 0.1}):
            options = {"lr": 0.1, "total_steps": 20, **more}
            yield Case(f"[{B}, {D}] {more or ''}".strip(), (*tables, step, active), options, in_place=(0, 2, 3, 4))


def _linear(random: _Random) -> Iterator[Case]:
    for rows, K, N in (((16,), 64, 64), ((3, 5), 17, 23), ((1,), 1, 1), ((0,), 8, 8)):
        x, matrix = random(*rows, K), random(K, N)
        yield Case(f"{[*rows, K]} · [{K}, {N}]", (x, matrix))
        yield Case(f"{[*rows, K]} · [{K}, {N}] + [{N}]", (x, matrix, random(N)))


def _gelu(random: _Random) -> Iterator[Case]:
    for shape in ((64,), (3, 5, 17), (1,), (0, 4)):
        yield Case(f"{[*shape]}", (4 * random(*shape),), gradients=(0,))


def _best_two(random: _Random) -> Iterator[Case]:
    for n, V, K in ((16, 256, 64), (3, 37, 17), (1, 2, 1), (0, 8, 8)):
        yield Case(f"[{n}, {K}] in [{V}, {K}]", (random.whole(n, K), random.whole(V, K), random.whole(V)))


def _prefix_attention(random: _Random) -> Iterator[Case]:
    for B, Hq, Hkv, K, d, L in ((2, 4, 2, 8, 16, 12), (3, 3, 1, 5, 7, 9), (1, 1, 1, 1, 4, 1)):
        own = (random(B, Hq, K, d), random(B, Hkv, K, d), random(B, Hkv, K, d))
        lengths = torch.arange(B, device=random.device) % (L + 1)
        slots = torch.arange(B, device=random.device).flip(0).contiguous()
        prefix = (random(B, Hkv, L, d), random(B, Hkv, L, d), lengths, slots)
        for causal in (True, False):
            gradients = () if causal else (0, 1, 2)
            for more in ({}, {"window": 3}, {"softcap": 5.0}):
                options = {"scale": d**-0.5, "causal": causal, **more}
                name = f"[{B}, {Hq}, {K}, {d}] {'in a row' if causal else 'side by side'} {more or ''}".strip()
                yield Case(f"{name}, no prefix", (*own, None, None, None), options, gradients=gradients)
                yield Case(f"{name}, prefix of {L}", (*own, *prefix), options, gradients=gradients)


_CASES: dict[str, Callable[[_Random], Iterator[Case]]] = {
    "residuals": _residuals,
    "nearest_tokens": _nearest_tokens,
    "adam_step": _adam_step,
    "linear": _linear,
    "gelu": _gelu,
    "best_two": _best_two,
    "prefix_attention": _prefix_attention,
}
