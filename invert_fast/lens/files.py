"""Reading what the cache folder holds of lenses: whole and finite, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from torch import Tensor

from ..calls.interrupts import raise_interrupt

log = logging.getLogger("invert_fast")

# what reading stumbles over where a file was cut, changed, or is of another version
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError, MemoryError)
_Read = TypeVar("_Read")


def read_or_warn(path: Path | None, read: Callable[[Path], _Read | None], then: str) -> _Read | None:
    """What a file holds; None, with a warning, when it is damaged: a lens is only ever a proposer."""
    if path is None:
        return None
    try:
        return read(path)
    except (SafetensorError, OSError, *UNREADABLE) as error:
        raise_interrupt(error)
        log.warning("the stored lens %s is unreadable (%s): %s", path, error, then)
        return None


def whole_tensor(file, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = file.get_tensor(name)
    if tensor.shape != shape or not tensor.is_floating_point():
        raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}, expected {list(shape)} of floats")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return tensor.float()
