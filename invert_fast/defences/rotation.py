"""A secret rotation of all rows: nothing is lost, and nothing protected from whoever knows enough of the texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..types import InputError, States
from .base import Defence, Given


@dataclass(frozen=True)
class Rotation(Defence):
    """Every row times one orthogonal matrix, drawn evenly from all of them by the key alone.

    `undo` needs the key. Without it angles and lengths are what they were, and the matrix follows from as many known
    rows as a state is wide: `rotation_from_pairs`. Raises InputError for a key that is no whole number of 0 or more.
    """

    key: int = 0
    name = "rotation"

    def __post_init__(self):
        if not (isinstance(self.key, int) and 0 <= self.key < 2**63):
            raise InputError(f"rotation:{self.key} has no key, expected a whole number of 0 or more, as in rotation:7")

    def matrix(self, width: int) -> Tensor:
        """`[D, D]` fp64: rows `h` are given away as `h @ matrix`."""
        return _rotation(self.key, width)

    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        return rotated(hidden, self.matrix(hidden.shape[-1]))

    def undo(self, states: Given) -> Given:
        """The rows as they were, but for one rounding."""
        if isinstance(states, States):
            return States(self.undo(states.hidden), states.layer, states.dtype, states.compute_dtype, states.model)
        return rotated(states, self.matrix(states.shape[-1]).T)

    received = undo


def rotated(rows: Tensor, matrix: Tensor) -> Tensor:
    """`rows [T, D] @ matrix [D, D]`, summed in fp64, in the precision of the rows."""
    return (rows.double().cpu() @ matrix).to(rows)


def rotation_from_pairs(given: Tensor, plain: Tensor) -> Tensor:
    """The rotation nearest to taking rows `plain [n, D]` to `given [n, D]` (orthogonal Procrustes), `[D, D]` fp64.

    Plain rows are what anybody with the model makes of texts that are known. Fewer of them than a state is wide leave
    the other directions open: what is undone with the matrix is then right in those that they span alone. Raises
    InputError for shapes that are not alike.
    """
    if given.shape != plain.shape or given.dim() != 2:
        raise InputError(
            f"rotated rows are {list(given.shape)}, plain ones {list(plain.shape)}, expected the same rows [n, D] twice"
        )
    left, _, right = torch.linalg.svd(plain.double().cpu().T @ given.double().cpu())
    return left @ right


@lru_cache(maxsize=4)
def _rotation(key: int, width: int) -> Tensor:
    normal = torch.randn(width, width, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(normal)
    return orthogonal * upper.diagonal().sign()  # without which it would not be drawn evenly
