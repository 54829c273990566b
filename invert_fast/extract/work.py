"""What every extraction method works on: whom to ask, what is wanted, what is known so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .bounds import Bounds
from .capabilities import Capabilities
from .client import Client
from .interface import Prompt
from .rounding import rounding


@dataclass
class Work:
    """One prompt's extraction.

    tokens `[n]`: ids that are wanted; precision: bound on the error of a log-prob to reach, nats (only argmax methods
    pay for it); per_query: most tokens a simultaneous bisection biases at once; on_known: told the ids of intervals
    that have become narrower and are worth keeping.
    """

    client: Client
    prompt: Prompt
    capabilities: Capabilities
    bounds: Bounds
    tokens: np.ndarray
    precision: float
    per_query: int
    on_known: Callable[[np.ndarray], None] = field(default=lambda ids: None)
    seed: int = 0

    @property
    def reference(self) -> int:
        return self.capabilities.reference

    def open(self) -> np.ndarray:
        """Wanted tokens that nothing finite is known of."""
        return self.tokens[~np.isfinite(self.bounds.high[self.tokens])]

    def error(self, bias: float) -> float:
        """Bound on the error of a difference of two log-probs that were told under a bias of this size."""
        return rounding(self.capabilities, bias)

    def settle(self, ids: np.ndarray, gaps: np.ndarray, error: np.ndarray | float) -> None:
        """Gaps that were told outright."""
        self.bounds.settle(ids, gaps, error)
        self.on_known(ids)

    def take_listed(self, ids: np.ndarray, log_probs: np.ndarray) -> None:
        """An unbiased list of log-probs, the reference's among them."""
        at = np.flatnonzero(ids == self.reference)
        if not len(at):
            return
        told, error = float(log_probs[at[0]]), self.error(0.0)
        self.bounds.reference_log_prob = (told - error, min(told + error, 0.0))
        keep = log_probs > -1000.0
        self.settle(ids[keep], told - log_probs[keep], error)
