"""How a lens orders candidates where its first choice was wrong, and how sure it is of its drafts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ERROR_LEAST = 1e-4
# a further block of candidates is so many times as large; of a large vocabulary the tail is long, and overshooting dear
GROWTH, GROWTH_OF_LARGE = 4, 2


@dataclass(frozen=True)
class Repair:
    """row, change, prior: weights of the three scores; first_block: candidates in the first block of a repair;
    first: how often the right token leads that order; sureness: a drafted token that leads by m is wrong with
    probability 1 / (1 + exp(sureness · m)); second_look: the same of tokens that were looked at again with the prior, 0
    where that does not help."""

    row: float = 0.0
    change: float = 1.0
    prior: float = 1.0
    first_block: int = 4
    first: float = 0.5
    sureness: float = 0.5
    second_look: float = 0.0

    def error(self, leads: Tensor, sureness: Tensor | float | None = None) -> Tensor:
        """How likely drafted tokens are wrong, from their leads; sureness: of others than the lens's own drafts. Never
        nothing: leads are not always told."""
        sureness = self.sureness if sureness is None else sureness
        return torch.sigmoid(-sureness * leads).clamp_min(_ERROR_LEAST)


def read_repair(entry: dict) -> Repair:
    """A `Repair` from its stored form; ValueError or TypeError unless every figure makes sense."""
    found = Repair(**entry)
    weights = (found.row, found.change, found.prior, found.first, found.sureness, found.second_look)
    if not all(0 <= float(weight) <= 100 for weight in weights) or found.first_block not in range(1, 1025):
        raise ValueError(f"a repair of {found}")
    return found
