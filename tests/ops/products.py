"""Rows times a matrix in float64, and how far from it a `linear` may be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..limits import close


def check(found: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
    __tracebackhide__ = True
    x, matrix = x.double(), matrix.double()
    bias = torch.zeros(matrix.shape[1]).double() if bias is None else bias.double()
    close(found, x @ matrix + bias, scale=x.abs() @ matrix.abs() + bias.abs(), terms=matrix.shape[0] + 1)
