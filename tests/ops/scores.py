"""Scores x·e_v + b_v in float64, and how far from their best two a search may be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..limits import close, limit


def scores(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """`[n, V]`"""
    return x.double() @ matrix.double().T + bias.double()


def sizes(x: Tensor, matrix: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """The scale of the scores of `ids [n]` or `[n, m]`, for `limits`."""
    products = x.double().abs() @ matrix.double().abs().T + bias.double().abs()
    return products.gather(1, ids) if ids.dim() == 2 else products.gather(1, ids[:, None])[:, 0]


def check(found: tuple[Tensor, Tensor], x: Tensor, matrix: Tensor, bias: Tensor, every: Tensor | None = None) -> None:
    """Which of two tokens within rounding is the first may be either: compared are its score and the lead.

    every: the scores of the candidates `[n, V]`, −inf else (default: all of them).
    """
    __tracebackhide__ = True
    ids, leads = found
    every = scores(x, matrix, bias) if every is None else every
    top = every.topk(2, -1)
    size, terms = sizes(x, matrix, bias, top.indices), x.shape[1] + 1
    own = every.gather(1, ids[:, None])[:, 0]
    scale = size[:, 0] + sizes(x, matrix, bias, ids)
    assert own.isfinite().all()
    close(own, top.values[:, 0], scale=scale, terms=terms)
    close(leads, top.values[:, 0] - top.values[:, 1], scale=scale + size[:, 1], terms=terms + 1)


def among(x: Tensor, matrix: Tensor, bias: Tensor, low: Tensor, low_matrix: Tensor, low_bias: Tensor):
    """The contract of csrc/best_two.h said plainly, in float64: scores of the candidates, -inf else."""
    rough = (low.double() @ low_matrix.double().T + low_bias.double()).masked_fill(low_bias.isinf(), -torch.inf)
    V = len(matrix)
    rough = torch.nn.functional.pad(rough, (0, -V % 64), value=-torch.inf).view(len(x), -1, 64)
    top, panel = rough.max(1)
    ids = panel * 64 + torch.arange(64)
    near = top >= torch.minimum(top.topk(2, -1).values[:, 1:], top.amax(-1, keepdim=True) - 40)
    exact = torch.full((len(x), V), -torch.inf, dtype=torch.float64)
    for row, (chosen, good) in enumerate(zip(ids, near & top.isfinite(), strict=True)):
        columns = chosen[good]
        exact[row, columns] = matrix[columns].double() @ x[row].double() + bias[columns].double()
    return exact


def agree(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], x: Tensor, matrix: Tensor, bias: Tensor) -> None:
    """Two searches find the same, but for tokens within rounding of each other."""
    __tracebackhide__ = True
    given = {"scale": 4 * sizes(x, matrix, bias, one[0]), "terms": x.shape[1] + 2}
    close(one[1], other[1], **given)
    sure = one[1] > limit(one[1], **given)
    assert (one[0] == other[0])[sure].all()
    assert not len(sure) or sure.float().mean() > 0.9, "too few leads say anything"
