"""The two gradient modes with few steps: the candidates make up for them."""

from __future__ import annotations

import pytest

from invert_fast import Continuous, PerStepProjection, Recovery

from ..families import VOCAB

QUICK = Continuous(steps=10, candidates=VOCAB, first_block=8, round=4)
SIPIT = PerStepProjection(max_steps=10, rest_block=64)
MODES = {"continuous": QUICK, "sipit": SIPIT}
modes = pytest.mark.parametrize("mode", MODES)
LENGTHS = (3, 1, 0, 2)


def figures(found: list[Recovery]) -> list[tuple]:
    """All that must be equal to the last bit when a run is repeated."""
    tables = [(r.token_ids, r.status, r.rank, r.steps, r.residual) for r in found]
    costs = [(r.cost.forward_tokens, r.cost.backward_tokens) for r in found]
    return [(*(t.tolist() for t in table), *cost) for table, cost in zip(tables, costs, strict=True)]
