"""The default: draft, verify, repair; then a few gradient steps; then the orders of lens and prior; then all tokens."""

from __future__ import annotations

from ..lens.base import Lens
from ..lens.outside import LensMaker
from .chain import Chain
from .exhaustive import Exhaustive
from .lens_order import LensOrder
from .per_step import PerStepProjection
from .speculative import Speculative

_A_FEW_STEPS = PerStepProjection(
    candidates_per_step=8, largest_block=32, max_steps=96, rest_block=None, project_every=2
)


def auto(lens: str | Lens | LensMaker = "auto") -> Chain:
    """What no strategy before it finds, the last one does: noise-free states always end exact. lens: see
    `Speculative`."""
    return Chain(Speculative(lens=lens), _A_FEW_STEPS, LensOrder(lens=lens), Exhaustive(), name="auto")
