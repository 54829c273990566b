"""Final states from logits: weighted least squares against the unembedding, up to a constant a row.

min over h, c of Σ_v w_v (y_v − b_v − u_v·h + c)², in fp64, with the rows u_v centred, which removes c. One
factorisation serves all rows that share their ids: rows with weights of their own are solved by conjugate gradients on
top of it. Rows with ids of their own (top-k) are factored one by one, in batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import InputError
from .unembedding import Unembedding

_CHUNK_BYTES = 1 << 28
_RANK = 1e-13  # smallest over largest eigenvalue of the normal matrix, below which fp64 tells nothing
_STEPS, _CLOSE = 16, 0.02  # of conjugate gradients; stop at this share of the first gradient
_HEAVIEST = 64.0  # weights over their median: a few tokens of tiny ulp say little of D dimensions


@dataclass(frozen=True)
class Solution:
    """hidden `[T, D]` fp64; chi `[T]`: RMS misfit over the expected deviation, None without entries to spare;
    unexplained `[T]`: share of the variance of the entries that no state explains (None likewise); deviation `[T]`:
    expected relative L2 error of each state, if the entries deviate as expected; condition: of the centred unembedding
    rows (the worst, where rows have ids of their own); spare: entries beyond the D + 1 that are needed.
    """

    hidden: Tensor
    chi: Tensor | None
    unexplained: Tensor | None
    deviation: Tensor
    condition: float
    spare: int


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of floats of `dtype` at `values`, fp64."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(values.double().abs().clamp_min(info.tiny)))) * info.eps


class SharedSolver:
    """All rows have the same ids `[n]` (None: tokens 0…n−1): the centred rows' normal matrix, factored once."""

    def __init__(self, head: Unembedding, ids: Tensor | None, entries: int):
        self.rows = head.weight[:entries] if ids is None else head.weight[ids.to(head.weight.device)]
        self.mean = torch.stack([part.double().sum(0) for part in self._parts()]).sum(0) / len(self.rows)
        normal = torch.zeros(head.width, head.width, dtype=torch.float64, device=self.rows.device)
        for part in self._parts():
            centred = part.double() - self.mean
            normal += centred.T @ centred
        self.factor, self.condition, self.inverse_trace = _factor(normal[None], entries, head.width)
        self.chunk = max(1, _CHUNK_BYTES // (8 * entries * 6))

    def _parts(self):
        return self.rows.split(max(1, _CHUNK_BYTES // (8 * self.rows.shape[1])))

    def solve(self, y: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """y `[t, n]` fp64, variance `[t, n]` (None: equal) → states `[t, D]`, misfit `[t, n]`, weight `[t]`:
        the harmonic
        mean, so that its inverse times the trace bounds the error from above (equal weights would have it).

        Equal weights are solved directly, with one step of refinement. From there to other weights the way is as short
        as the noise, so that few steps of conjugate gradients are near enough.
        """
        equal = torch.ones_like(y[:, :1])
        h, residual = self._descend(y.new_zeros(len(y), self.rows.shape[1]), y, equal, 2, 0.0)
        if variance is None:
            return h, residual, equal[:, 0]
        weight = weights(variance)
        h, residual = self._descend(h, residual, weight, _STEPS, _CLOSE)
        return h, residual, 1 / (1 / weight).mean(-1)

    def _descend(self, h: Tensor, y: Tensor, weight: Tensor, steps: int, close: float) -> tuple[Tensor, Tensor]:
        """Conjugate gradients from h, whose misfit is y; stops where every gradient fell to the share `close`."""
        weight = weight.expand_as(y)
        total, scale = weight.sum(-1, keepdim=True), weight.mean(-1, keepdim=True)
        residual = y - (weight * y).sum(-1, keepdim=True) / total
        r = self._back(weight * residual)
        direction = self._inverse(r) / scale
        start = rz = (r * direction).sum(-1, keepdim=True)
        for _ in range(steps):
            forward = self._forward(direction)
            forward -= (weight * forward).sum(-1, keepdim=True) / total
            step = rz / (direction * self._back(weight * forward)).sum(-1, keepdim=True).clamp_min(1e-300)
            h, residual = h + step * direction, residual - step * forward
            r = self._back(weight * residual)
            z = self._inverse(r) / scale
            new = (r * z).sum(-1, keepdim=True)
            if close and bool((new <= close**2 * start).all()):
                break
            direction, rz = z + (new / rz.clamp_min(1e-300)) * direction, new
        return h, residual

    def _forward(self, h: Tensor) -> Tensor:
        """Centred rows times h: `[t, D] → [t, n]`."""
        return torch.cat([h @ (part.double() - self.mean).T for part in self._parts()], -1)

    def _back(self, values: Tensor) -> Tensor:
        """Centred rows transposed: `[t, n] → [t, D]`."""
        parts = zip(values.split([len(p) for p in self._parts()], -1), self._parts(), strict=True)
        out = sum((value @ (part.double() - self.mean) for value, part in parts), values.new_zeros(()))
        assert isinstance(out, Tensor)
        return out

    def _inverse(self, values: Tensor) -> Tensor:
        return torch.cholesky_solve(values.T, self.factor[0]).T


class RowSolver:
    """Each row has its own ids `[T, n]`."""

    def __init__(self, head: Unembedding, entries: int):
        self.head, self.entries = head, entries
        self.chunk = max(1, _CHUNK_BYTES // (8 * 3 * entries * head.width))
        self.condition = 1.0

    def solve(self, y: Tensor, variance: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `SharedSolver.solve`, and the trace of each inverse normal matrix `[t]` at unit weights."""
        rows = self.head.weight[ids.to(self.head.weight.device)].double()
        weight = torch.ones_like(y) if variance is None else weights(variance)
        share = weight / weight.sum(-1, keepdim=True)
        rows -= (share[..., None] * rows).sum(-2, keepdim=True)
        residual = y - (share * y).sum(-1, keepdim=True)
        weighted = weight[..., None] * rows
        factor, condition, trace = _factor(rows.mT @ weighted, self.entries, self.head.width)
        self.condition = max(self.condition, condition)
        h = y.new_zeros(len(y), self.head.width)
        for _ in range(2):  # the second is refinement
            step = torch.cholesky_solve((weighted.mT @ residual[..., None]), factor)[..., 0]
            h += step
            residual = residual - (rows @ step[..., None])[..., 0]
        mean = weight.mean(-1)
        return h, residual, mean, trace * mean


def weights(variance: Tensor) -> Tensor:
    """1 / variance `[t, n]`, none far above the median of its row."""
    weight = 1 / variance
    return weight.minimum(_HEAVIEST * weight.median(-1, keepdim=True).values)


def _factor(normal: Tensor, entries: int, width: int) -> tuple[Tensor, float, Tensor]:
    """Cholesky factors `[b, D, D]`, the worst condition of the rows, and traces `[b]` of the inverses."""
    factor, failed = torch.linalg.cholesky_ex(normal)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    if bool((failed > 0).any()) or bool((pivots.amin(-1) <= _RANK * pivots.amax(-1)).any()):
        values = torch.linalg.eigvalsh(normal)
        rank = int((values > _RANK * values[:, -1:]).sum(-1).min())
        raise InputError(
            f"{entries} entries a position determine only {rank} of the {width} dimensions of a state: record more "
            f"tokens (at least {width + 1} whose unembedding rows are independent)"
        )
    inverse = torch.cholesky_inverse(factor)
    condition = float((_largest(normal) * _largest(inverse)).max().sqrt())
    return factor, condition, inverse.diagonal(dim1=-2, dim2=-1).sum(-1)


def _largest(matrices: Tensor) -> Tensor:
    """`[b]` largest eigenvalue of `[b, D, D]`, by power iteration, to a few per cent."""
    vector = torch.ones_like(matrices[..., :1]) + torch.arange(matrices.shape[-1], device=matrices.device)[:, None] % 7
    for _ in range(24):
        vector = matrices @ (vector / vector.norm(dim=-2, keepdim=True))
    return vector.norm(dim=-2)[..., 0]
