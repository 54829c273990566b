"""Files in and out."""

from .prompts import read_prompts
from .recovered import read_recovered, recovery_line, resume
from .states import FORMAT, StatesFile, head, open_states, without_model, write_states
from .tensors import write_tensors

__all__ = [
    "FORMAT",
    "StatesFile",
    "head",
    "open_states",
    "read_prompts",
    "read_recovered",
    "recovery_line",
    "resume",
    "without_model",
    "write_states",
    "write_tensors",
]
