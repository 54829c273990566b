"""Rows of a table that are computed when they are asked for, and kept only where all of them are small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_KEPT = 1 << 26  # bytes of a table that is made once
_AT_ONCE = 1 << 21  # numbers that are computed at once


class RowTable:
    """A table `[V, D]` in fp32 of which `[ids]` gives rows; make: ids `[n]` → `[n, D]` fp32, row by row."""

    def __init__(self, make: Callable[[Tensor], Tensor], size: int, width: int, device: torch.device):
        self.shape, self.device = torch.Size((size, width)), device
        self._make = make
        every = torch.arange(size, device=device)
        self._kept = make(every) if 4 * size * width <= _KEPT else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Tensor) -> Tensor:
        """`[...] → [..., D]`."""
        if self._kept is not None:
            return self._kept[ids]
        parts = ids.flatten().split(max(1, _AT_ONCE // self.shape[1]))
        out = torch.empty(ids.numel(), self.shape[1], device=self.device)
        for part, into in zip(parts, out.split(max(1, _AT_ONCE // self.shape[1])), strict=True):
            into.copy_(self._make(part))
        return out.view(*ids.shape, self.shape[1])
