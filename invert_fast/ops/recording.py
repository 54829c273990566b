"""How ops of our own take part in a recording (`program.py`): as operators that it can name while it is made, and as
plain calls, without the dispatcher's share, when it is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_recording: ContextVar[bool] = ContextVar("invert_fast_recording", default=False)
_library = torch.library.Library("invert_fast", "DEF")
REPLAYED: dict[Any, Callable] = {}
"""What a replay calls in the place of each operator."""


def is_recording() -> bool:
    """Whether ops are to go through the operators that `define` made."""
    return _recording.get()


@contextmanager
def recording() -> Iterator[None]:
    """Within it `is_recording()`."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def define(schema: str, call: Callable) -> Callable:
    """Make `call` the operator of this schema, for tensors of a CPU; returns the operator."""
    name = _library.define(schema)
    _library.impl(name, call, "CPU")
    operator = getattr(torch.ops.invert_fast, name.partition("::")[2] or name)
    REPLAYED[operator.default] = call
    return operator
