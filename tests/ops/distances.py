"""The distances of `nearest_tokens` in float64, and how far from them a kernel may be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..limits import close


def distances(queries: Tensor, table: Tensor, metric: str, banned: Tensor | None = None) -> Tensor:
    """All of them `[B, V]`, +inf where banned."""
    found = torch.empty(len(queries), len(table), dtype=torch.float64)
    for row, query in zip(found, queries.cpu().double(), strict=True):
        row.copy_(_one(query, table.cpu().double(), metric))
    return found if banned is None else found.masked_fill(banned.cpu(), torch.inf)


def _one(q: Tensor, e: Tensor, metric: str) -> Tensor:
    return {
        "l1": lambda: (q - e).abs().sum(-1),
        "l2": lambda: (q - e).square().sum(-1),
        "cosine": lambda: 1 - (q * e).sum(-1) / (q.norm().clamp_min(1e-12) * e.norm(dim=-1).clamp_min(1e-12)),
        "dot": lambda: -(q * e).sum(-1),
    }[metric]()


def sizes(queries: Tensor, table: Tensor, metric: str) -> Tensor:
    """The scale of each distance, for `limits`. An L2 distance may be computed as |q|² − 2⟨q, e⟩ + |e|²."""
    if metric == "l1":
        return distances(queries, table, "l1")
    products = -distances(queries.abs(), table.abs(), "dot")
    if metric == "dot":
        return products
    if metric == "cosine":
        return torch.full_like(products, 2.0)
    squares = [t.cpu().double().square().sum(-1) for t in (queries, table)]
    return squares[0][:, None] + 2 * products + squares[1]


def roundings(width: int, metric: str) -> int:
    return {"l1": 1, "l2": 3, "cosine": 3, "dot": 1}[metric] * width + 8


def check(
    found: tuple[Tensor, Tensor], queries: Tensor, table: Tensor, metric: str, banned: Tensor | None = None
) -> None:
    """Ties within rounding may stand in any order: compared are the distances, and the distances of the ids."""
    __tracebackhide__ = True
    values, ids = found[0].cpu(), found[1].cpu()
    every, size = distances(queries, table, metric, banned), sizes(queries, table, metric)
    terms, nearest = roundings(queries.shape[1], metric), every.sort(-1).values[:, : values.shape[1]]
    close(values, nearest, scale=size.amax(-1, keepdim=True) if size.numel() else 0.0, terms=terms)
    left = ids >= 0
    assert left.eq(nearest.isfinite()).all()
    own, scale = (t.gather(1, ids.clamp_min(0))[left] for t in (every, size))
    close(values[left], own, scale=scale, terms=terms)
    assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in ids)
