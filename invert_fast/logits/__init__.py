"""Next-token log-probs or logits back into text."""

from .recorded import Logits
from .states import StateSolver

__all__ = ["Logits", "StateSolver"]
