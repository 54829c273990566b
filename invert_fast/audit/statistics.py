"""Intervals for what was measured on some texts: Wilson's for shares, the bootstrap of texts for means and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

LEVEL, ROUNDS, SEED = 0.95, 2000, 20_260
_LARGEST = 1 << 25  # numbers in a table of draws: of more than 16,000 texts there are fewer rounds
_Z = 1.959963984540054  # of a normal distribution, two-sided at LEVEL


class Estimate(NamedTuple):
    """A figure, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, of: int) -> Estimate:
    """A share of independent trials, and Wilson's score interval. Of no trials: 0 to 1 around NaN."""
    if not of:
        return Estimate(math.nan, 0.0, 1.0)
    share, z2 = hits / of, _Z * _Z / of
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / of + z2 / (4 * of))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Estimate(share, 0.0 if not hits else low, 1.0 if hits == of else high)


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """Σ values / Σ weights (all 1: the mean) over texts, and its percentile interval when texts are drawn again, with a
    fixed seed. NaN of no texts, or no weight."""
    above = np.asarray(values, float)
    below = np.ones_like(above) if weights is None else np.asarray(weights, float)
    if not len(above) or not below.sum():
        return Estimate(math.nan, math.nan, math.nan)
    drawn = _drawn(len(above))
    with np.errstate(invalid="ignore"):
        ratios = (drawn @ above) / (drawn @ below)
    low, high = np.nanquantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))


def share(hits: Sequence[float], of: Sequence[float]) -> Estimate:
    """The share of tokens, by texts: tokens of one text are no independent trials, so texts are drawn again. Where all
    texts are wholly hit, or none at all, that says nothing, and the interval is Wilson's for as many texts."""
    total, count = sum(hits), sum(of)
    if count and total in (0, count):
        return wilson(len(hits) if total else 0, len(hits))
    return bootstrap(hits, of)


@lru_cache(maxsize=4)
def _drawn(count: int) -> np.ndarray:
    """How often each of so many texts is drawn in each round, `[rounds, count]`."""
    rounds = max(100, min(ROUNDS, _LARGEST // count))
    return np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=rounds).astype(float)
