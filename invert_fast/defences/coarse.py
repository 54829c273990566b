"""Giving away less: fewer bits of a number, fewer numbers of a row, fewer rows of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import InputError
from .base import Defence

_MOST_BITS = 16


@dataclass(frozen=True)
class Quantise(Defence):
    """So many bits a number: each row in 2^bits even steps between its least and its greatest number.

    Raises InputError for what is not a whole number from 1 to 16.
    """

    bits: int
    name = "quantise"

    def __post_init__(self):
        if not (isinstance(self.bits, int) and 1 <= self.bits <= _MOST_BITS):
            raise InputError(
                f"quantise:{self.bits} is no precision, expected whole bits from 1 to {_MOST_BITS}, for example "
                "quantise:4"
            )

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        low, high = hidden.amin(-1, keepdim=True).double(), hidden.amax(-1, keepdim=True).double()
        step = ((high - low) / (2**self.bits - 1)).clamp_min(1e-300)
        return (low + ((hidden - low) / step).round() * step).float()


@dataclass(frozen=True)
class TopK(Defence):
    """Only the largest numbers of each row, the others zero. keep: how many, or, below 1, which share of the width.

    Raises InputError for a share that is not above 0, and a count that is not whole.
    """

    keep: float
    name = "topk"

    def __post_init__(self):
        if not (0 < self.keep < 1 or (self.keep < math.inf and self.keep >= 1 and self.keep == int(self.keep))):
            raise InputError(
                f"topk:{self.keep:g} is no choice, expected a whole number of entries or a share between 0 and 1, for "
                "example topk:64 or topk:0.25"
            )

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        width = hidden.shape[-1]
        count = min(width, int(self.keep)) if self.keep >= 1 else max(1, round(self.keep * width))
        largest = hidden.abs().topk(count, dim=-1).indices
        return torch.zeros_like(hidden).scatter_(-1, largest, hidden.gather(-1, largest))


@dataclass(frozen=True)
class DropRows(Defence):
    """Each row of a text is left out with this probability; one is always given away.

    Raises InputError for a share that is not at least 0 and below 1.
    """

    share: float
    name = "drop"

    def __post_init__(self):
        if not 0 <= self.share < 1:
            raise InputError(
                f"drop:{self.share:g} is no share, expected a number of at least 0 and below 1: how many of the rows "
                "are left out, for example drop:0.1"
            )

    def kept(self, length: int, seed: int = 0) -> list[int]:
        return self._kept(length, torch.Generator().manual_seed(seed))

    def _kept(self, length: int, generator: torch.Generator) -> list[int]:
        luck = torch.rand(length, generator=generator, dtype=torch.float64)
        stay = luck >= self.share
        if length and not bool(stay.any()):
            stay[luck.argmax()] = True
        return stay.nonzero().flatten().tolist()

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        return hidden[self._kept(len(hidden), generator)]
