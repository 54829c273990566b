"""Next-token log-probs or logits back into text."""

from .recorded import Logits
from .search import VectorRecovery, VectorSearch
from .states import StateSolver

__all__ = ["Logits", "StateSolver", "VectorRecovery", "VectorSearch"]
