"""How candidates are found. One file a strategy, and a line in `registry.py`; the protocol is `engine/protocol.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting
from .registry import BUILT_IN

if TYPE_CHECKING:
    from .beam import Beam
    from .chain import Chain
    from .continuous import Continuous
    from .exhaustive import Exhaustive
    from .per_step import PerStepProjection
    from .prior import PriorOrder
    from .speculative import Speculative

__all__ = ["Beam", "Chain", "Continuous", "Exhaustive", "PerStepProjection", "PriorOrder", "Speculative"]

_places = (place.split(":") for place in BUILT_IN.values())
__getattr__ = exporting(__name__, {name: module for module, name in _places} | {"Chain": f"{__name__}.chain"})
