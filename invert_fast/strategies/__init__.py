"""How candidates are found. One file a strategy; `base.py` holds the protocol they follow."""

from .chain import Chain
from .exhaustive import Exhaustive
from .prior import PriorOrder
from .speculative import Speculative

__all__ = ["Chain", "Exhaustive", "PriorOrder", "Speculative"]
