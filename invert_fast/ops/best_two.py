"""`best_two`: the best two tokens of every row under a lens's scores x·e_v + b_v, csrc/best_two.cpp.

Scores that come from a likelihood, b_v = −½ e_vᵀ G e_v and more, need not be looked at whole. With G = LLᵀ the score is
−½‖L⁻¹x − Lᵀe_v‖² but for a constant, noise of unit variance in every direction, in which tokens differ by the spread of
Lᵀe. In the few directions of largest spread they already lie far apart: candidates are found there, and only those are
scored in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import native, outside
from .linear import MOST_BYTES, linear, pack, pack_parts
from .native import _C, address
from .table import backend as backend_of
from .table import choose

_SCORES_BYTES, _SCORES_CACHED = 1 << 28, 1 << 24
_KEPT, _KEPT_NATS = 0.88, 100.0  # of the mean lead of one token over another: what a sketch must keep of it
MANY_TOKENS = 32_768  # a row of scores of so many costs as much as a forward pass
_KEPT_OF_LISTS = 0.8  # of the spread of tokens: what a sketch that names candidates must keep of it
_FEWEST_TOKENS, _WIDEST = 1024, 2048  # too few for a sketch to pay; too wide for its eigenvectors to come in a moment
_STEP, _SAMPLE = 16, 16_384
_IN_STAGES = "invert_fast.kernels.best_two_triton"  # imported where it is needed: it needs Triton
LISTED = 64  # tokens that a list has at most


@dataclass(frozen=True)
class _Sketch:
    """x·map scores like x in directions of which `rest [V]`, ½‖Lᵀe_v‖² of what a bias takes off, was left out; both
    matrices packed, too."""

    map: Tensor
    packed_map: Tensor
    packed: Tensor
    rest: Tensor

    @property
    def width(self) -> int:
        return self.map.shape[1]


def best_two(
    x: Tensor, matrix: Tensor, bias: Tensor, packed: Any = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """argmax_v x·e_v + b_v and its lead over the second largest: x `[n, K]`, matrix `[V, K]`, bias `[V]` → `[n]` each.

    See `kernels.reference.best_two`. packed: where the matrix is used often, as the backend lays it out: transposed by
    `linear.pack` for C++, by `coarse` of `kernels/best_two_triton.py` for Triton.
    """
    if x.dim() != 2 or matrix.dim() != 2 or x.shape[1] != matrix.shape[1] or bias.shape != matrix.shape[:1]:
        raise ValueError(
            f"best_two of rows {list(x.shape)}, matrix {list(matrix.shape)} and bias {list(bias.shape)}: expected "
            "[n, K], [V, K] and [V]"
        )
    return backend_of("best_two", backend, x.device)(x, matrix, bias, packed)


def fused(x: Tensor, matrix: Tensor, bias: Tensor, packed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A few megabytes of scores at a time: on a CPU they are still in the cache when their maximum is looked for."""
    ids, leads = x.new_empty(len(x), dtype=torch.long), x.new_empty(len(x))
    rows = max(1, (_SCORES_BYTES if x.is_cuda else _SCORES_CACHED) // (4 * len(bias)))
    for start in range(0, len(x), rows):
        scores = torch.addmm(bias, x[start : start + rows], matrix.T)
        top, found = scores.max(-1)
        scores.scatter_(1, found[:, None], float("-inf"))
        ids[start : start + rows], leads[start : start + rows] = found, top - scores.amax(-1)
    return ids, leads


def cpp(x: Tensor, matrix: Tensor, bias: Tensor, packed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """csrc/best_two.cpp: no score is written down. PyTorch's products for what is not fp32."""
    if not x.dtype == matrix.dtype == bias.dtype == torch.float32:
        return fused(x, matrix, bias)
    packed = pack(matrix.t()) if packed is None else packed
    x, bias = native.rows(x), bias.contiguous()
    out = x.new_empty(len(x), dtype=torch.long), x.new_empty(len(x))
    _C.best_two(
        *(address(x), address(packed), address(bias), address(out[0], torch.long), address(out[1])),
        *((*x.shape, x.stride(0)), len(bias), torch.get_num_threads()),
    )
    return out


class BestTwo:
    """`best_two` of many rows for one matrix e `[V, K]`, packed once; with a sketch of the scores where that will do.

    gram: G `[K, K]` of scores that come from a likelihood; scale: of all rows, where the matrix is e / scale.
    """

    def __init__(self, matrix: Tensor, gram: Tensor | None = None, scale: float = 1.0):
        self.matrix, self.gram, self._scale = matrix.contiguous(), gram, scale
        self._packed: Any = None
        self._looked = False
        self._made: _Sketch | None = None
        self._metric: Tensor | None = None
        self._list_sketch: _Sketch | None = None
        self._in_stages = choose("best_two", matrix.device.type) == "triton"
        on_cpu = matrix.device.type == "cpu" and matrix.dtype == torch.float32
        self._compiled = native.has("best_two") and on_cpu and matrix.nbytes <= MOST_BYTES

    def __call__(self, x: Tensor, bias: Tensor, scale: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """x `[n, K]`, bias `[V]` → ids and leads, `[n]` each.

        scale: the bias has −½ scale·eᵀGe in it, so that a sketch will do: then the best two of a few candidates, of
        which the first is all but always the best of all; where it is not, its lead is small.
        """
        x = self._scaled(x)
        if outside.serving("best_two", x.device.type) is not None:
            return best_two(x, self.matrix, bias)
        if self._in_stages:
            return best_two(x, self.matrix, bias, self._coarse(), backend="triton")
        if not (self._compiled and x.dtype == bias.dtype == torch.float32):
            return best_two(x, self.matrix, bias, backend="fused")
        sketch = self._sketch()
        if sketch is not None and scale is not None:
            out = x.new_empty(len(x), dtype=torch.long), x.new_empty(len(x))
            self._by_sketch(_C.best_two_by_sketch, out, sketch, x, bias, bias + scale * sketch.rest)
            return out
        if self._packed is None:
            self._packed = pack(self.matrix.t())
        return best_two(x, self.matrix, bias, self._packed, backend="cpp")

    def list_by(self, metric: Tensor | None) -> None:
        """From now on find lists by a sketch, if one will do: scores differ from those of the right token by noise of
        this covariance `[K, K]` in x, and the sketch keeps the directions in which tokens differ beside that."""
        self._metric, self._list_sketch = metric, None

    def shortlist(self, x: Tensor, bias: Tensor, scale: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """The best tokens of every row, best first: ids `[n, LISTED]`, −1 where there are fewer, and their scores, −∞
        there. After `list_by`, by a sketch, of which a few that score as well may be missing. scale: as above; what
        the sketch leaves out then counts for no token and against none."""
        x = self._scaled(x)
        if self._in_stages:
            shortlist = import_module(_IN_STAGES).shortlist

            return shortlist(x, self.matrix, bias, self._coarse(), LISTED)
        if self._compiled and self._metric is not None:
            gram = None if self.gram is None else self.gram * self._scale**2
            self._list_sketch = _sketch_for(self.matrix, self._metric * self._scale**2, gram)
            self._metric = None
        if self._list_sketch is None or not x.dtype == bias.dtype == torch.float32:
            return _list_of_all(x, self.matrix, bias)
        ids, scores = x.new_empty(len(x), LISTED, dtype=torch.long), x.new_empty(len(x), LISTED)
        low_bias = bias if scale is None else bias + scale * self._list_sketch.rest
        self._by_sketch(_C.list_by_sketch, (ids, scores), self._list_sketch, x, bias, low_bias)
        return ids, scores

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self._scale == 1.0 else x * self._scale

    def _coarse(self) -> tuple[Tensor, Tensor]:
        if self._packed is None:
            self._packed = import_module(_IN_STAGES).coarse(self.matrix)
        return self._packed

    def _by_sketch(
        self, call: Any, out: tuple[Tensor, Tensor], sketch: _Sketch, x: Tensor, bias: Tensor, low_bias: Tensor
    ) -> None:
        """Fills `out` by the function `call` of the library."""
        x, bias, low_bias = native.rows(x), bias.contiguous(), low_bias.contiguous()
        low = linear(x, sketch.map, None, sketch.packed_map, backend="cpp")
        call(
            (address(low), address(sketch.packed), address(low_bias)),
            (*low.shape, low.stride(0)),
            (address(x), address(self.matrix), address(bias)),
            (*x.shape, x.stride(0)),
            *(address(out[0], torch.long), address(out[1]), len(bias), torch.get_num_threads()),
        )

    def _sketch(self) -> _Sketch | None:
        """Made on the first use, if it pays."""
        if not self._looked and self.gram is not None:
            self._made = _sketch_of(self.matrix, self.gram * self._scale**2)
        self._looked = True
        return self._made


def _list_of_all(x: Tensor, matrix: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Every score is looked at, a few megabytes at a time."""
    count, rows = min(LISTED, len(bias)), max(1, _SCORES_CACHED // (4 * len(bias)))
    found = [_numbers(torch.addmm(bias, part, matrix.T)).topk(count) for part in x.split(rows)]
    scores, ids = (torch.cat(parts) for parts in zip(*found, strict=True)) if found else (x[:, :0], x[:, :0].long())
    scores = torch.nn.functional.pad(scores, (0, LISTED - scores.shape[1]), value=-torch.inf)
    ids = torch.nn.functional.pad(ids, (0, LISTED - ids.shape[1]), value=-1)
    return ids.masked_fill(scores == -torch.inf, -1), scores


def _numbers(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores.isnan(), -torch.inf)


def scores_of(x: Tensor, matrix: Tensor, ids: Tensor) -> Tensor:
    """x_i·e_v of a few tokens v a row: x `[n, K]`, matrix `[V, K]`, ids `[n, C]` → `[n, C]` fp32; some score for −1."""
    most = _SCORES_BYTES if x.is_cuda else _SCORES_CACHED
    rows = max(1, most // (4 * matrix.shape[1] * max(1, ids.shape[1])))
    parts = zip(x.float().split(rows), ids.clamp_min(0).split(rows), strict=True)
    found = [torch.bmm(matrix[v].float(), part[..., None])[..., 0] for part, v in parts]
    return torch.cat(found) if found else x.new_empty(ids.shape)


@torch.no_grad()
def directions(matrix: Tensor, metric: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Those in which the rows of `matrix [V, K]` differ in a metric `[K, K]`, most first: A and L `[K, K]`, x·A those
    of what they are scored by and e·L those of a row, so that in all of them (x·A)·(e·L) = x·e; and by how much rows
    differ in each, `[K]`; fp64. None where that is no number: a model may have rows of NaN, which are no candidates."""
    values, vectors = torch.linalg.eigh(metric.double())
    root = values.clamp_min(1e-9 * float(values[-1]) + 1e-30).sqrt()
    factor, some = vectors * root, matrix[:: max(1, len(matrix) // _SAMPLE)]
    covariance = factor.T @ torch.cov(some.T).double() @ factor
    if not bool(covariance.isfinite().all()):
        return None
    spread, found = torch.linalg.eigh(covariance)
    found = found.flip(1)
    return (vectors / root) @ found, factor @ found, spread.flip(0).clamp_min(0)


@torch.no_grad()
def _sketch_for(matrix: Tensor, metric: Tensor, gram: Tensor | None) -> _Sketch | None:
    """The directions in which tokens differ most in this metric, None if it takes more than six of ten of them.
    Whatever is left out is noise to the scores. gram: as of `BestTwo`, where scores come from a likelihood."""
    V, K = matrix.shape
    if V < _FEWEST_TOKENS or K > _WIDEST or not bool(metric.isfinite().all()):
        return None
    found = directions(matrix, metric)
    if found is None:
        return None
    kept = found[2].cumsum(0)
    width = -(-(int((kept < _KEPT_OF_LISTS * kept[-1]).sum()) + 1) // _STEP) * _STEP
    if width > 0.6 * K:
        return None
    to_low, lower = (of[:, :width].float().contiguous() for of in found[:2])
    rest = matrix.new_zeros(())
    if gram is not None:  # of the score of a token's own noiseless state, half is what the bias takes off
        rest = torch.cat([_left_out(part, gram, to_low, lower) for part in matrix.split(_SAMPLE)])
    return _Sketch(to_low, pack(to_low), _pack_low(matrix, lower), rest)


def _left_out(rows: Tensor, gram: Tensor, to_low: Tensor, lower: Tensor) -> Tensor:
    """½ eᵀGe less what of it a sketch has, of rows `[n, K]`."""
    own = rows @ gram
    return 0.5 * ((own * rows).sum(-1) - ((own @ to_low) * (rows @ lower)).sum(-1))


@torch.no_grad()
def _sketch_of(matrix: Tensor, gram: Tensor) -> _Sketch | None:
    """The narrowest that keeps tokens apart, None if it would have to be half as wide as all or more."""
    V, K = matrix.shape
    if V < _FEWEST_TOKENS or K > _WIDEST or not bool(gram.isfinite().all()):
        return None
    found = directions(matrix, gram)
    if found is None:
        return None
    kept = found[2].cumsum(0)
    enough = (kept >= _KEPT * kept[-1]) & (kept >= _KEPT_NATS)
    width = -(-(int((~enough).sum()) + 1) // _STEP) * _STEP
    if width > K // 2:
        return None
    to_low, lower = (of[:, :width].float().contiguous() for of in found[:2])
    parts = matrix.split(_SAMPLE)
    rest = torch.cat([0.5 * (((e @ gram) * e).sum(-1) - (e @ lower).square().sum(-1)) for e in parts])
    return _Sketch(to_low, pack(to_low), _pack_low(matrix, lower), rest)


def _pack_low(matrix: Tensor, lower: Tensor) -> Tensor:
    """The rows of a matrix `[V, K]` in fewer directions `[K, width]`, packed as columns."""
    return pack_parts(((part @ lower).t() for part in matrix.split(_SAMPLE)), lower.shape[1], len(matrix))
