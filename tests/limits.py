"""How far apart two ways of computing one formula may be: from what goes in, not from what some machine gave.

A sum of n products is off by at most n·u·Σ|aᵢ||bᵢ|, u being the unit roundoff, in whatever order and with or without
fused multiplications (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1). Errors have either sign, so what
is met grows with √n (Higham and Mary, 2019): in a running sum of n equal numbers, the worst there is, errors spread
evenly over ±u add up to a standard deviation of √n·u·Σ/3. `LAMBDA`·√n allows nine of those; up to n = 9 the strict
bound is the smaller one, and taken.

A limit needs two numbers beside the precision. scale: the sum of the absolute values of all that is added up, with
differences counted as sums. terms: how many roundings an answer goes through, the terms of its sums and one for each
other step (two for an exp, a tanh, a root or a division, which libraries may give to within an ulp). Neither knows of a
processor, of threads or of a kernel. `tests/test_limits.py` shows that a kernel which is wrong exceeds them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LAMBDA = 3.0
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def share(terms: float, computed: torch.dtype = torch.float32) -> float:
    """What part of its scale an answer may be off by after so many roundings."""
    return min(terms, LAMBDA * math.sqrt(terms)) * ROUNDOFF[computed]


def limit(
    wanted: Tensor,
    *,
    scale: Tensor | float,
    terms: float,
    computed: torch.dtype = torch.float32,
    written: torch.dtype = torch.float32,
    cut: bool = False,
) -> Tensor:
    """How far from `wanted` an answer may be that was computed in one precision and then written down in another.

    An oracle is in float64. Any other `wanted` was rounded as the answer was, and is as far off itself. cut: what does
    not fit is cut off, not rounded, as Triton's interpreter does.
    """
    sides = 1 if wanted.dtype == torch.float64 else 2
    size = torch.as_tensor(scale).detach().double().cpu()
    off = share(terms, computed) * size + terms * torch.finfo(computed).tiny  # what may underflow on the way
    return sides * (off + (1 + cut) * ROUNDOFF[written] * (wanted.detach().double().cpu().abs() + off))


def average(squares: Tensor, terms: float, computed: torch.dtype = torch.float32) -> float:
    """What sums of random terms of either sign are off by on average, in the worst order: squares, Σ (aᵢbᵢ)² of each.

    A running sum of them grows with √k, so rounding it gives errors of u·√(n/6)·√Σ (aᵢbᵢ)².
    """
    return float(math.sqrt(terms / 6) * ROUNDOFF[computed] * squares.double().sqrt().mean())


def close(
    found: Tensor,
    wanted: Tensor,
    *,
    scale: Tensor | float,
    terms: float,
    computed: torch.dtype = torch.float32,
    cut: bool = False,
    equal_nan: bool = False,
) -> None:
    """Asserts that `found`, of the precision it was written down in, is within the limit; equal infinities are."""
    __tracebackhide__ = True
    assert found.shape == wanted.shape, f"got {list(found.shape)}, wanted {list(wanted.shape)}"
    allowed = limit(wanted, scale=scale, terms=terms, computed=computed, written=found.dtype, cut=cut)
    allowed = allowed.expand(found.shape)
    ours, theirs = found.detach().double().cpu(), wanted.detach().double().cpu()
    off = (ours - theirs).abs()
    fine = (ours == theirs) | ((off <= allowed) & allowed.isfinite()) | (equal_nan & ours.isnan() & theirs.isnan())
    if bool(fine.all()):
        return
    ratio = (off / allowed).nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(fine, -1.0)
    at = tuple(int(i) for i in np.unravel_index(int(ratio.argmax()), ratio.shape))
    raise AssertionError(
        f"{int((~fine).sum())} of {fine.numel()} numbers are off, worst at {list(at)}: got {float(ours[at])!r}, wanted "
        f"{float(theirs[at])!r}, which is {float(off[at]):.3g} apart where {float(allowed[at]):.3g} is the limit "
        f"({terms:g} roundings in {computed}, written in {found.dtype})"
    )
