"""The rows of a model's embedding, held once: computed from its weight when they are asked for.

A row is the weight's times a constant in all families but a few, so products with all rows are products with the
weight. Where it is not, and where products need another precision than the weight has, there is one copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.best_two import scores_of
from ..ops.linear import FEW_ROWS, is_halved, pack_halved, packs
from .wrapped import value_of

BLOCK = 2048  # rows that are computed at once where all are gone through: a few megabytes, which are used again
_ALIKE, _ALIKE_ROUNDED = (1e-5, 1e-30), (1e-2, 1e-7)  # relative, absolute: fp32 rows, and those of less precision
_POWER = {"l1": 1, "l2": 2, "cosine": 0, "dot": 2}  # of the unit of length, in a distance


class Embedding:
    """Rows e_v `[V, D_e]` of an embedding module: `rows(ids)` as the model sees them, `[ids]` in fp32.

    device: where rows are wanted; weight: the module's, which must not change afterwards; scale: rows over those of the
    weight, None where the module does more than a lookup and a product with a positive constant; spoilt: ids of rows
    that are no numbers.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        self.weight, self.device, self._module = value_of(module, "weight").to(device), device, module
        self._kept: Tensor | None = None
        with torch.no_grad():
            self.dtype = self._module(torch.zeros(1, dtype=torch.long, device=device)).dtype
            self.spoilt = torch.cat([~part.isfinite().all(-1) for part in self.weight.split(BLOCK)]).nonzero().flatten()
            self.scale = self._measured_scale()
            if self.scale is None:
                self._kept = torch.cat([*self._made()])
        self.shape = (self.weight if self._kept is None else self._kept).shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Rows in fp32, `[...] → [..., D_e]`."""
        return self.rows(ids).float()

    def rows(self, ids: Tensor) -> Tensor:
        """Rows as the model sees them, in its precision: `[...] → [..., D_e]`."""
        if self.scale is not None and self.scale != 1.0:
            with torch.no_grad():
                return self._module(ids)
        return (self.weight if self._kept is None else self._kept)[ids]

    def blocks(self) -> Iterator[Tensor]:
        """All rows in fp32, in order, `BLOCK` at a time."""
        for ids in torch.arange(len(self), device=self.device).split(BLOCK):
            yield self[ids]

    # ---- products with all rows, in fp32

    @cached_property
    def matrix(self) -> Tensor:
        """`[V, D_e]` fp32: the rows are `factor` times these; zeros where they are no numbers."""
        if (held := self._held) is not None:
            return held
        made = torch.empty(self.shape, device=self.device)
        for part, into in zip(self.blocks(), made.split(BLOCK), strict=True):
            into.copy_(part)
        return made.index_fill_(0, self.spoilt, 0.0)

    @property
    def factor(self) -> float:
        """Rows over those of `matrix`."""
        return self.scale if self.scale is not None and self._held is not None else 1.0

    @property
    def copied(self) -> int:
        """Bytes of the copies that `matrix`, `rows` and `times` need beside the weight."""
        copies = (0 if self._kept is None else self._kept.nbytes) + (
            4 * self.shape.numel() if self._held is None else 0
        )
        return copies + (2 * self.shape.numel() if self._halved else 0)

    @cached_property
    def _halved(self) -> bool:
        """Whether a copy in half as many bytes is of the same numbers, and of use."""
        return (held := self._held) is not None and packs(held) and is_halved(held)

    @cached_property
    def _packed(self) -> Tensor | None:
        return pack_halved(self.matrix.T) if self._halved else None

    @property
    def _held(self) -> Tensor | None:
        """What products may be taken with as it is."""
        held = self.weight if self._kept is None else self._kept
        return held if held.dtype == torch.float32 and not len(self.spoilt) else None

    def reads_faster(self, weight: Tensor) -> bool:
        """Whether `times` is the product with this weight, as of a tied head, and has fewer bytes of it to read."""
        held = self._held
        return held is not None and self._halved and (weight.data_ptr(), weight.shape) == (held.data_ptr(), self.shape)

    def scores(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x·e_v + bias_v, `[n, D_e] → [n, V]`."""
        x = x if self.factor == 1.0 else x * self.factor
        if bias is not None and bias.dim() > 1:
            return self.times(x).add_(bias)
        return self.times(x, bias)

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x · `matrix`ᵀ + bias, `[..., D_e] → [..., V]`. A few rows read all of it: where half as many bytes hold the
        same numbers, they take half the time."""
        few = x.dtype == torch.float32 and x.numel() <= FEW_ROWS * x.shape[-1]
        return ops.linear(x, self.matrix.T, bias, self._packed if few else None)

    def scores_of(self, x: Tensor, ids: Tensor) -> Tensor:
        """As `scores` of a few tokens `ids [n, C]` a row, `[n, C]`; some score for −1."""
        return scores_of(x if self.factor == 1.0 else x * self.factor, self.matrix, ids)

    def mapped(self, to: Tensor) -> Tensor:
        """All rows through a map `[D_e, N]`: `[V, N]`."""
        return self.matrix @ (to * self.factor)

    def mean(self, weights: Tensor) -> Tensor:
        """Σ_v w_v e_v, `[n, V] → [n, D_e]`."""
        return (weights @ self.matrix) * self.factor

    def nearest(self, queries: Tensor, count: int, metric: str, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`ops.nearest_tokens` among all rows."""
        distances, ids = ops.nearest_tokens(queries / self.factor, self.matrix, count, metric, banned)
        return distances * self.factor ** _POWER[metric], ids

    def deviation(self, ids: Tensor) -> Tensor:
        """Standard deviation of all numbers of rows `ids [n]`."""
        parts, count = ids.split(BLOCK), max(1, ids.numel() * self.shape[1])
        mean = torch.stack([self[part].sum(dtype=torch.float64) for part in parts]).sum() / count
        squares = torch.stack([(self[part] - mean).square().sum(dtype=torch.float64) for part in parts]).sum()
        return (squares / max(1, count - 1)).sqrt().float()

    def _made(self) -> Iterator[Tensor]:
        for ids in torch.arange(len(self.weight), device=self.device).split(BLOCK):
            yield self._module(ids)

    def _measured_scale(self) -> float | None:
        lengths = torch.cat([part.float().norm(dim=-1) for part in self.weight.split(BLOCK)])
        row = lengths.index_fill(0, self.spoilt, -1.0).argmax()
        made, plain = self._module(row[None])[0].float(), self.weight[row].float()
        if made.shape != plain.shape:
            return None
        scale = 1.0 if torch.equal(made, plain) else float(made.norm() / plain.norm())
        relative, absolute = _ALIKE if self.weight.dtype == torch.float32 else _ALIKE_ROUNDED
        for made, part in zip(self._made(), self.weight.split(BLOCK), strict=True):
            same = torch.allclose(made.float(), scale * part.float(), rtol=relative, atol=absolute, equal_nan=True)
            if not same or (scale == 1.0 and not torch.equal(made.nan_to_num(), part.nan_to_num())):
                return None
        return scale
