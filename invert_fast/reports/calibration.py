"""Whether stated probabilities are what comes true: bins of like ones, and how far the two lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Of `count` tokens: mean probability that was stated, and share that was right."""

    count: int
    stated: float
    right: float


def bins(stated: Sequence[float], right: Sequence[bool], number: int = BINS) -> list[Bin]:
    """The bins of equal width of [0, 1] that are not empty, from the least probability on."""
    sums = [[0, 0.0, 0] for _ in range(number)]
    for p, good in zip(stated, right, strict=True):
        here = sums[min(number - 1, int(p * number))]
        here[0], here[1], here[2] = here[0] + 1, here[1] + p, here[2] + bool(good)
    return [Bin(count, total / count, good / count) for count, total, good in sums if count]


def calibration_error(stated: Sequence[float], right: Sequence[bool], number: int = BINS) -> float:
    """The expected calibration error: mean |stated − right| of the bins, by their tokens; 0 of none."""
    return sum(b.count * abs(b.stated - b.right) for b in bins(stated, right, number)) / max(1, len(stated))
