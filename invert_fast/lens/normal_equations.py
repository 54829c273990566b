"""Least squares of states on embeddings and context, from sums alone: no state is kept, and more can be added later.

    h = M e + C h' + c + ε,   ε ~ N(0, Q⁻¹)

All that a solution needs are the sums of products of [e | h' | 1 | h], taken in float64 as blocks of states come by.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 4096  # rows whose products are taken at once
_LEAST = 1e-6  # ridge, of the mean of a diagonal, where the data ask for less
_FIRST = 1e-4  # ridge of the solution that says how much to ask for
_ROWS_MORE = (
    60.0  # the ridge of M is 1 + this · D / count times as large: overshooting loses a token, falling short little
)
_SHRINK, _SHRINK_MOST = 120.0, 0.5  # of the covariance towards its diagonal, times (D / count)²
_NOTHING = 1e-13  # of the states' power: what float64 sums leave of a residual that is none


class NormalEquations:
    """Sums of `count` pairs of a token and its state, to be solved at any time.

    rows: width of an embedding row; width: of a state; context: numbers beside the row that explain the state: the
    state before and a one (width + 1), a one, or none.
    """

    def __init__(self, rows: int, width: int, context: int, device: torch.device | str = "cpu"):
        self.rows, self.width, self.context, self.count = rows, width, context, 0
        size = rows + context + width
        self.sums = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(
        self, embeds: Tensor, states: Tensor, previous: Tensor | None = None, product: torch.dtype = torch.float64
    ) -> None:
        """More pairs: embeds `[n, D_e]`, states `[n, D]`, and, where they are context, the states before `[n, D]`.
        product: precision in which blocks of them are multiplied, before that is added up in float64."""
        for start in range(0, len(states), _BLOCK):
            part = slice(start, start + _BLOCK)
            context = [] if previous is None else [previous[part]]
            if self.context:
                context.append(torch.ones(len(states[part]), 1, device=states.device))
            joined = torch.cat([embeds[part], *context, states[part]], -1).to(product)
            self.sums += joined.T @ joined
        self.count += len(states)

    def join(self, other: NormalEquations) -> None:
        """What others have summed, too."""
        self.sums += other.sums.to(self.sums)
        self.count += other.count

    def solve(self) -> tuple[Tensor, Tensor]:
        """The scorer of these sums in fp32: project `[D + context, D_e]` over features [state | context], and gram
        MᵀQM `[D_e, D_e]` (see `linear.Part`).

        With few tokens per number of a state both M, C and the covariance are mostly noise. The ridge is what empirical
        Bayes asks for (Hoerl, Kennard and Baldwin 1975), p σ² / ‖W‖² for each of M and C with its own p numbers, and
        more of it for M while tokens are few. The covariance is shrunk to its diagonal by `_SHRINK` · (D / count)².
        Both fade as tokens come in, and where a layer is read without error there is next to none from the start.
        """
        solution, covariance = self.regression()
        M = solution[: self.rows]
        precision_M = torch.linalg.solve(covariance, M.T)  # Q Mᵀ: [D, D_e]
        context = -solution[self.rows :] @ precision_M
        return torch.cat([precision_M, context]).float(), (M @ precision_M).float()

    def regression(self) -> tuple[Tensor, Tensor]:
        """What `solve` makes its scorer of, fp64: the map `[D_e + context, D]` and the covariance `[D, D]` of ε."""
        inputs, sums = self.rows + self.context, self.sums
        normal, mixed = sums[:inputs, :inputs], sums[:inputs, inputs:]
        power, count = sums[inputs:, inputs:], max(1, self.count)
        ridge = self._ridge(normal, mixed, power)
        solution = torch.linalg.solve(normal + ridge.diag(), mixed)
        covariance = _residual(power, mixed, normal, solution) / count
        shrink = min(_SHRINK_MOST, _SHRINK * (self.width / count) ** 2)
        own = covariance.diagonal().clamp_min(_NOTHING * float(power.diagonal().mean()) / count)
        covariance = (1 - shrink) * covariance
        covariance.diagonal().copy_(own + _LEAST * own.mean() + 1e-30)
        return solution, covariance

    def _ridge(self, normal: Tensor, mixed: Tensor, power: Tensor) -> Tensor:
        """What to add to the diagonal of the inputs' products, `[inputs]`."""
        diagonal = normal.diagonal()
        blocks = [(slice(0, self.rows), 1 + _ROWS_MORE * self.width / max(1, self.count))]
        if self.context > 1:
            blocks.append((slice(self.rows, self.rows + self.context - 1), 1.0))
        means = [float(diagonal[block].mean()) for block, _ in blocks]
        ridge = torch.full_like(diagonal, 1e-30)
        for (block, _), mean in zip(blocks, means, strict=True):
            ridge[block] += _FIRST * mean
        inverse = torch.linalg.inv(normal + ridge.diag())
        first = inverse @ mixed
        left = float(_residual(power, mixed, normal, first).diagonal().clamp_min(0).sum())
        noise = left / max(self.count - len(diagonal), 0.1 * self.count, 1.0)
        for (block, more), mean in zip(blocks, means, strict=True):
            found = float(first[block].square().sum())
            signal = max(found - noise * float(inverse.diagonal()[block].sum()), 0.1 * found, 1e-30)
            asked = more * (block.stop - block.start) * noise / signal
            ridge[block] = 1e-30 + min(max(asked, _LEAST * mean), mean)
        return ridge


def _residual(power: Tensor, mixed: Tensor, normal: Tensor, solution: Tensor) -> Tensor:
    """(Y − XW)ᵀ(Y − XW) from the sums."""
    cross = mixed.T @ solution
    return power - cross - cross.T + solution.T @ normal @ solution
