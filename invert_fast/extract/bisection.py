"""Language Model Inversion's Algorithm 1: one token at a time, one bit a call, from the argmax alone."""

from __future__ import annotations

import numpy as np

from .interface import Query
from .rounding import argmax_rounding
from .work import Work

FIRST_BRACKET = 32.0
_ROUND = 256


def bisection(work: Work) -> None:
    """The least bias b that makes token i the argmax is its gap: halve [0, 32] (doubled up to the API's limit where a
    token does not reach the top) until it is as narrow as the precision asks."""
    bounds, limit = work.bounds, work.capabilities.bias_limit
    slack = float(argmax_rounding(work.capabilities, min(limit, FIRST_BRACKET)))
    width = target_width(work.precision, slack)
    todo = work.tokens[bounds.width[work.tokens] > width + 2 * slack]
    while len(todo):
        part = todo[:_ROUND]
        low, high = bounds.low[part].copy(), bounds.high[part].copy()
        bracketed = np.isfinite(high)
        reach = np.minimum(limit, np.maximum(FIRST_BRACKET, 2 * low))
        while len(part):
            middle = np.where(bracketed, (low + high) / 2, reach)
            queries = [Query(work.prompt, {int(token): float(b)}) for token, b in zip(part, middle, strict=True)]
            won = np.array(
                [answer.token == token for token, answer in zip(part, work.client.map(queries), strict=True)], bool
            )
            high[won], low[~won] = middle[won], middle[~won]
            bracketed |= won
            bounds.low[part] = np.maximum(0.0, low - argmax_rounding(work.capabilities, low))
            bounds.high[part[bracketed]] = (high + argmax_rounding(work.capabilities, high))[bracketed]
            lost = ~bracketed & (reach >= limit)
            reach = np.minimum(limit, 2 * reach)
            going = ~lost & ~(bracketed & (high - low <= width))
            work.on_known(part[bracketed])
            part, low, high, reach, bracketed = part[going], low[going], high[going], reach[going], bracketed[going]
        todo = todo[_ROUND:]


def target_width(precision: float, slack: float) -> float:
    """How narrow a gap's interval must be: half of it is the gap's error, the normaliser's adds at most as much.

    Rounding widens the interval by twice `slack`; where that alone is more than the precision, the width is as small
    as rounding makes useful, and the stated error will be above the precision.
    """
    return max(precision - 2 * slack, 2 * slack)
