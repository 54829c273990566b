"""How candidates are found. One file a strategy; `base.py` holds the protocol they follow."""

from .chain import Chain
from .continuous import Continuous
from .exhaustive import Exhaustive
from .per_step import PerStepProjection
from .prior import PriorOrder
from .speculative import Speculative

PRESETS = {"fast": Continuous.fast, "baseline": Continuous.baseline, "high-accuracy": Continuous.high_accuracy}

__all__ = ["PRESETS", "Chain", "Continuous", "Exhaustive", "PerStepProjection", "PriorOrder", "Speculative"]
