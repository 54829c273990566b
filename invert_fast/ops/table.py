"""Which backend runs which op where: the one literal table. A new kernel is a row in it, or a column of a row.

Backends: triton (GPUs), cuda (CUDA C++, for one op, and where asked for), cpp (C++ on CPUs), fused (PyTorch's own op),
reference (`kernels/reference.py`: the formula, and the contract that all others are tested against). A place is named
and not imported: not every machine has Triton, a compiler or a GPU. Those of other packages are in `outside.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import torch

from . import native, outside

BACKENDS: dict[str, dict[str, str]] = {
    "residuals": {
        "triton": "kernels.residuals_triton:residuals",
        "cuda": "ops.residuals:cuda",
        "cpp": "ops.residuals:cpp",
        "reference": "kernels.reference:residuals",
    },
    "nearest_tokens": {
        "triton": "kernels.nearest_triton:nearest_tokens",
        "cuda": "ops.nearest_tokens:cuda",
        "cpp": "ops.nearest_tokens:cpp",
        "reference": "kernels.reference:nearest_tokens",
    },
    "adam_step": {
        "triton": "kernels.adam_triton:adam_step",
        "cpp": "ops.adam_step:cpp",
        "reference": "kernels.reference:adam_step",
    },
    "prefix_attention": {
        "triton": "kernels.attention_triton:prefix_attention",
        "cpp": "ops.prefix_attention:cpp",
        "fused": "kernels.attention:prefix_attention",
        "reference": "kernels.reference:prefix_attention",
    },
    "linear": {
        "cpp": "ops.linear:cpp",
        "fused": "ops.linear:fused",
        "reference": "kernels.reference:linear",
    },
    "gelu": {
        "cpp": "ops.gelu:cpp",
        "fused": "ops.gelu:fused",
        "reference": "kernels.reference:gelu",
    },
    "best_two": {
        "triton": "kernels.best_two_triton:best_two",
        "cpp": "ops.best_two:cpp",
        "fused": "ops.best_two:fused",
        "reference": "kernels.reference:best_two",
    },
}

HAS_TRITON = importlib.util.find_spec("triton") is not None


@cache
def choose(op: str, device: str) -> str:
    """The backend that runs `op` on a device of this type when none is asked for; "cuda" cross-checks "triton", but
    for the nearest token alone (see `nearest_tokens`)."""
    row = BACKENDS[op]
    if device == "cpu" and "cpp" in row and native.has(op):
        return "cpp"
    if device == "cuda" and "triton" in row and HAS_TRITON:
        return "triton"
    return "fused" if "fused" in row else "reference"


def backend(op: str, name: str, device: torch.device) -> Callable:
    """The function that computes `op`; name: `auto`, `own` (as `auto`, but of our own whatever is in use), one of its
    row, or that of a backend of another package. ValueError where that does not have it."""
    if name == "auto" and (theirs := outside.serving(op, device.type)) is not None:
        return theirs
    if name in ("auto", "own"):
        return _function(op, choose(op, device.type))
    if name in outside.OWN or name not in outside.names():
        return _function(op, name)
    theirs = outside.function_of(outside.backend_named(name), op, device.type)
    if theirs is None:
        raise ValueError(f"backend '{name}' does not have {op} on {device.type}, expected auto or another backend")
    return theirs


@cache
def _function(op: str, name: str) -> Callable:
    if name not in BACKENDS[op]:
        known = [*sorted(BACKENDS[op]), *outside.names()]
        raise ValueError(f"backend '{name}' does not have {op}, expected auto or one of {known}")
    module, _, function = BACKENDS[op][name].partition(":")
    return getattr(importlib.import_module(f"invert_fast.{module}"), function)
