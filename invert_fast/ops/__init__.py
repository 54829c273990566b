"""Every op under one name and one contract, a file each; `table.py` says which backend runs it where."""

from .adam_step import adam_step
from .best_two import best_two
from .gelu import gelu
from .linear import linear
from .nearest_tokens import nearest_tokens
from .prefix_attention import prefix_attention
from .residuals import residuals
from .table import BACKENDS, choose

__all__ = [
    "BACKENDS",
    "adam_step",
    "best_two",
    "choose",
    "gelu",
    "linear",
    "nearest_tokens",
    "prefix_attention",
    "residuals",
]
