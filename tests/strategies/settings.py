"""The strategies that tests run all alike, and texts of all lengths."""

from __future__ import annotations

import pytest

from invert_fast import Chain, Exhaustive, PriorOrder, Speculative

STRATEGIES = {
    "auto": "auto",
    "exhaustive": Exhaustive(block=64),
    "prior": PriorOrder(),
    "speculative": Speculative(),
    "chain": Chain(Speculative(max_candidates=8), PriorOrder(max_candidates=64), Exhaustive()),
}
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
MIXED = (5, 1, 0, 17, 2, 33, 0)
