"""The compiled CPU ops, `_C`, where they were built; their threads are those of PyTorch.

After each of its own ops PyTorch's threads spin for some milliseconds, and threads of ours would wait for their cores.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

try:
    from . import _C as _COMPILED  # type: ignore[attr-defined]
except ImportError:  # no compiler at install time: everything runs, more slowly
    _COMPILED = None
_C: Any = _COMPILED


def team_of_torch() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch has loaded, 0 where it uses none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):  # another system, or built with another runtime
        return 0


if _C is not None:
    _C.share_team(team_of_torch())
