"""The strategies that tests run all alike, and texts of all lengths."""

from __future__ import annotations

import pytest

from invert_fast import Chain, Exhaustive, PriorOrder, Speculative
from invert_fast.strategies.registry import BUILT_IN, strategy_named

SEARCHES = ("continuous", "sipit", "beam")  # of hundreds of steps a position, or for noise: with tests of their own
TUNED = {"exhaustive": Exhaustive(block=64)}
STRATEGIES = {
    **{name: TUNED.get(name) or strategy_named(name) for name in BUILT_IN if name not in SEARCHES},
    "chain": Chain(Speculative(max_candidates=8), PriorOrder(max_candidates=64), Exhaustive()),
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
MIXED, SHORTER = (5, 1, 0, 17, 2, 33, 0), (5, 1, 0, 17, 2, 0)
