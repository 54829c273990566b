"""Prompts as rows of ids: how one is changed into others, and which of many are the same."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def reorderings(length: int) -> Tensor:
    """`[m, T]` permutations: two places exchanged, or one token moved elsewhere."""
    start, found = list(range(length)), set()
    for i in start:
        for j in start:
            exchanged, moved = start.copy(), start.copy()
            exchanged[i], exchanged[j] = exchanged[j], exchanged[i]
            moved.insert(j, moved.pop(i))
            found |= {tuple(exchanged), tuple(moved)}
    return torch.tensor(sorted(found - {tuple(start)}), dtype=torch.long).view(-1, length)


def repeated(ids: Tensor) -> Tensor:
    """`[p, k]` bool: the same prompt stands further left in `ids [p, k, T]`."""
    odd = torch.randint(-(2**62), 2**62, (ids.shape[-1],), generator=torch.Generator().manual_seed(0)) | 1
    mixed = ids + 1
    code = (mixed * odd.to(ids.device)).sum(-1)
    order = code.sort(dim=-1, stable=True).indices
    ordered = code.gather(1, order)
    same = torch.zeros_like(ordered, dtype=torch.bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(same).scatter(1, order, same)
