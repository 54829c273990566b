"""The compiled ops, `_C` for CPUs and `_cuda`, where they were built; the threads of the former are those of PyTorch.

After each of its own ops PyTorch's threads spin for some milliseconds, and threads of ours would wait for their cores.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import InputError

try:
    from .. import _C as _COMPILED  # type: ignore[attr-defined]
except ImportError:  # no compiler at install time: everything runs, more slowly
    _COMPILED = None
_C: Any = _COMPILED

try:
    from .. import _cuda as _COMPILED_CUDA  # type: ignore[attr-defined]
except ImportError:  # no nvcc at install time: Triton runs on GPUs anyway
    _COMPILED_CUDA = None
_cuda: Any = _COMPILED_CUDA

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_TILED = ("linear", "best_two")  # faster than a BLAS only where there are tiles for the vectors in use


def has(op: str) -> bool:
    """Whether the C++ of `op` was built, and is the fastest way here."""
    return _C is not None and (op not in _TILED or _C.tiles_are_wide())


def rows(tensor: Tensor) -> Tensor:
    """The tensor itself where each of its rows is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def address(tensor: Tensor, *dtypes: torch.dtype) -> int:
    """Where the numbers of a tensor lie, of a type that the library reads and writes there (fp32 where none is named):
    it is told an address alone, and another type would have it run over the end."""
    if tensor.dtype not in (dtypes or (torch.float32,)):
        wanted = " or ".join(map(str, dtypes or (torch.float32,)))
        raise ValueError(f"a compiled op got {list(tensor.shape)} {tensor.dtype}, expected {wanted}: convert it first")
    return tensor.data_ptr()


def has_values(tensor: Tensor) -> bool:
    """Not a stand-in, as of FakeTensorMode, which has no memory to point to."""
    return type(tensor) is Tensor


def stream(*tensors: Tensor) -> int:
    """The stream on which PyTorch queues work of these tensors, all of one GPU."""
    if _cuda is None:
        raise ValueError("backend 'cuda' needs invert_fast._cuda: install with INVERT_FAST_CUDA=on where nvcc is")
    devices = {t.device for t in tensors}
    if len(devices) > 1 or tensors[0].device.type != "cuda":
        raise ValueError(f"backend 'cuda' got tensors on {sorted(map(str, devices))}: expected all on one GPU")
    return torch.cuda.current_stream(tensors[0].device).cuda_stream


def team_of_torch() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch has loaded, 0 where it uses none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):  # another system, or built with another runtime
        return 0


if _C is not None:
    try:
        _C.use_isa(os.environ.get("INVERT_FAST_ISA", ""))  # none: the widest of this machine
    except ValueError as error:
        raise InputError(str(error)) from None
    _C.share_team(team_of_torch())
