"""The default: draft, verify, repair; then a few gradient steps; then all of the vocabulary."""

from __future__ import annotations

from .chain import Chain
from .exhaustive import Exhaustive
from .per_step import PerStepProjection
from .speculative import Speculative

_A_FEW_STEPS = PerStepProjection(candidates_per_step=8, max_steps=32, rest_block=None)


def auto() -> Chain:
    """What no strategy before it finds, the last one does: noise-free states always end exact."""
    return Chain(Speculative(), _A_FEW_STEPS, Exhaustive(), name="auto")
