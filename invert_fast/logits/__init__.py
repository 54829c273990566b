"""Next-token log-probs or logits back into text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import exporting

if TYPE_CHECKING:
    from .recorded import Logits
    from .states import StateSolver
    from .vector import VectorRecovery, VectorSearch

__all__ = ["Logits", "StateSolver", "VectorRecovery", "VectorSearch"]

__getattr__ = exporting(
    __name__,
    {"Logits": f"{__name__}.recorded", "StateSolver": f"{__name__}.states"}
    | dict.fromkeys(("VectorRecovery", "VectorSearch"), f"{__name__}.vector"),
)
