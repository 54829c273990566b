"""Next-token log-probs or logits back into text."""

from .recorded import Logits
from .states import StateSolver
from .vector import VectorRecovery, VectorSearch

__all__ = ["Logits", "StateSolver", "VectorRecovery", "VectorSearch"]
