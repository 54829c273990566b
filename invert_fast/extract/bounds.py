"""What is known of a next-token distribution: an interval for every token, and the log-probs that follow from them.

The gap of token i is x_i = log p_ref − log p_i ≥ 0, with the most likely token as reference: the least bias that makes
token i the argmax (Language Model Inversion, section 5). Every method narrows the same intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class Bounds:
    """low, high `[V]`, nats: low_i ≤ x_i ≤ high_i. The reference has gap 0; `reference_log_prob` is an interval too,
    (−inf, 0] until some answer tells it."""

    def __init__(self, vocab_size: int, reference: int):
        self.reference = reference
        self.low, self.high = np.zeros(vocab_size), np.full(vocab_size, np.inf)
        self.high[reference] = 0.0
        self.reference_log_prob = (-np.inf, 0.0)

    @property
    def width(self) -> np.ndarray:
        return self.high - self.low

    def settle(self, ids: np.ndarray, gaps: np.ndarray, error: np.ndarray | float) -> None:
        """Gaps that were told outright, to within `error`. The reference stays at 0."""
        self.low[ids], self.high[ids] = gaps - error, gaps + error
        self.low[self.reference] = self.high[self.reference] = 0.0


@dataclass(frozen=True)
class LogProbs:
    """values `[V]` fp64 nats, NaN where unknown; error `[V]`: stated bound on |values − truth|, inf where unknown;
    normalised: False where only differences are known (the values are then minus the gaps, log p − log p_ref)."""

    values: np.ndarray
    error: np.ndarray
    normalised: bool


def log_probs(bounds: Bounds) -> LogProbs:
    """Midpoints, with the bound that the intervals imply, the normaliser's own uncertainty included.

    If all gaps are known, log p_ref = −logsumexp(−x), which is monotone in each x: its ends follow from theirs.
    Otherwise log p_ref must have been told.
    """
    known = np.isfinite(bounds.high)
    gap, half = np.full(len(known), np.nan), np.full(len(known), np.inf)
    gap[known] = (bounds.low[known] + bounds.high[known]) / 2
    half[known] = bounds.width[known] / 2
    low, high = bounds.reference_log_prob
    if known.all():
        least, most = -_logsumexp(-bounds.low), -_logsumexp(-bounds.high)
        if not np.isfinite(low) or most - least < high - low:
            low, high = least, most
    if not np.isfinite(low):
        return LogProbs(-gap, half, False)
    return LogProbs((low + high) / 2 - gap, half + (high - low) / 2, True)


def _logsumexp(values: np.ndarray) -> float:
    most = values.max()
    return float(most + np.log(np.exp(values - most).sum()))
