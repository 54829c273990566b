"""How candidates are found. One file a strategy, and a line in `registry.py`; the protocol is `engine/protocol.py`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import BUILT_IN

if TYPE_CHECKING:
    from .chain import Chain
    from .continuous import Continuous
    from .exhaustive import Exhaustive
    from .per_step import PerStepProjection
    from .prior import PriorOrder
    from .speculative import Speculative

__all__ = ["Chain", "Continuous", "Exhaustive", "PerStepProjection", "PriorOrder", "Speculative"]

_HOMES = {place.partition(":")[2]: place.partition(":")[0] for place in BUILT_IN.values()}
_HOMES["Chain"] = f"{__name__}.chain"


def __getattr__(name: str) -> Any:
    """Classes are imported when they are asked for: names alone (`registry.names`) need no PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
