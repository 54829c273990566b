"""GELU and its slope in float64, and how far from them an op may be."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..limits import ROUNDOFF, close

TERMS = 12  # a polynomial of four steps, an exp, a sum, a quotient and a product
_RATE, _CUBE = 2 * math.sqrt(2 / math.pi), 0.044715


def formula(x: Tensor) -> Tensor:
    return x * torch.sigmoid(_RATE * (x + _CUBE * x**3))


def size(x: Tensor, by_tanh: bool = False) -> Tensor:
    """x σ(y) is off by as much of itself as y is large, and nothing where less than 1e-35 is left; x/2 (1 + tanh) is
    off by a share of x wherever it is."""
    x = x.detach().double()
    return x.abs() if by_tanh else formula(x).abs() * (1 + (_RATE * (x + _CUBE * x**3)).abs()) + 1e-28


def slope_size(x: Tensor) -> Tensor:
    """The scale of σ(y) + x y′ σ(y) (1 − σ(y)). σ is off by as much of itself as y is large; where it is near 0 or 1,
    the product may come from 1 − σ or 1 − tanh², which have an error of one until nothing is left of them."""
    x = x.detach().double()
    y, bend = _RATE * (x + _CUBE * x**3), _RATE * (1 + 3 * _CUBE * x.square())
    product, rest = torch.sigmoid(y) * torch.sigmoid(-y), torch.sigmoid(-y.abs())
    return 1 + x.abs() * bend * (product * (1 + y.abs()) + (rest / ROUNDOFF[torch.float32]).clamp_max(1))


def check(op: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, by_tanh: bool = False) -> None:
    """Value, and gradient for that of the answer."""
    __tracebackhide__ = True
    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    out, wanted = op(leaf), formula(exact)
    (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
    (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), exact)
    assert (out.shape, grad.shape, out.dtype) == (x.shape, x.shape, torch.float32)
    close(out, wanted, scale=size(x, by_tanh), terms=TERMS)
    close(grad, wanted_grad, scale=slope_size(x) * weight.double().abs(), terms=2 * TERMS)
