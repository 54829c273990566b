"""What noise looks like: how long it is, and in which directions of a state it lies.

The noise of a bf16 pass is a hundredth of a state, and a few directions hold much of it. A rival is told apart by what
lies along the one direction to it. So coarse states are compared in the *metric of the noise*, in which those few
directions count less: x ↦ ‖x‖² − Σᵢ hᵢ ⟨x, uᵢ⟩², hᵢ = 1 − ρ/λᵢ for the noise's largest variances λᵢ along uᵢ and its
mean variance ρ along all others. Noise is alike in every direction then, and almost at right angles to any given one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DIRECTIONS, _ROWS_EACH = 64, 8  # at most so many are singled out, and one for so many rows measured


@dataclass(frozen=True)
class Metric:
    """directions `[2, D, k]`: orthonormal, of the first position and of the others; held `[2, k]` in [0, 1): what is
    left out of the squared length along each."""

    directions: Tensor
    held: Tensor

    def lengths(self, of: Tensor, plain: Tensor, first: Tensor) -> Tensor:
        """Lengths in this metric of `of [..., D]`, whose plain ones are `plain [...]`; first `[...]` bool: those of
        first positions."""
        found = self._lengths(of, plain, 1)
        if bool(first.any()):
            found[first] = self._lengths(of[first], plain[first], 0)
        return found

    def _lengths(self, of: Tensor, plain: Tensor, at: int) -> Tensor:
        along = (of @ self.directions[at]).square() @ self.held[at]
        return (plain.square() - along).clamp_min(0).sqrt()

    def cosines(self, one: Tensor, other: Tensor, at: int) -> Tensor:
        """Cosines in this metric between `one [n, D]` and `other [n, D]`, of position class `at`."""
        both = [
            x - (x @ self.directions[at] * (1 - (1 - self.held[at]).sqrt())) @ self.directions[at].T
            for x in (one.float(), other.float())
        ]
        return torch.nn.functional.cosine_similarity(*both, dim=-1)


def flat_metric(width: int, device: torch.device) -> Metric:
    """The plain metric: no direction is singled out."""
    return Metric(torch.zeros(2, width, 0, device=device), torch.zeros(2, 0, device=device))


def metric_of(first: Tensor, rest: Tensor) -> Metric:
    """The metric of noise of which rows `[n, D]` were seen, of first positions and of others."""
    count = min(_DIRECTIONS, rest.shape[1] // 4, max(1, min(len(first), len(rest)) // _ROWS_EACH))
    directions, held = zip(*(_directions(rows, count) for rows in (first, rest)), strict=True)
    return Metric(torch.stack(directions), torch.stack(held))


def _directions(noise: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of unit noise, so that no loud position decides: the `count` largest directions, and what to hold of each."""
    rows = torch.nn.functional.normalize(noise.float(), dim=-1)
    _, along, directions = torch.linalg.svd(rows, full_matrices=False)
    variance = torch.nn.functional.pad(along.square() / max(1, len(rows)), (0, count))[:count]
    directions = torch.nn.functional.pad(directions[:count], (0, 0, 0, max(0, count - len(directions))))
    others = (1 - variance.sum()).clamp_min(0) / max(1, rows.shape[1] - count)
    return directions.T.contiguous(), (1 - others / variance.clamp_min(1e-30)).clamp(0, 1 - 1e-6)
