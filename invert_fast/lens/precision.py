"""Which precision matrix products run fastest in on this device: asked of the machine, never of a clock.

A lens is trained and drafts in it, so that it must be the same in every process: measured times are not. On a busy
machine they have two runs of one fit end with two lenses.
"""

from __future__ import annotations

import os
from functools import cache

import torch

_TENSOR_CORES = 8, 0  # the first GPUs whose bf16 products are many times as fast as full fp32 ones


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where its products are clearly faster than fp32 ones: on GPUs from Ampere on, and on processors with tiles
    for it (AMX); else fp32. For proposals only, never to verify."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= _TENSOR_CORES
    else:
        fast = device.type == "cpu" and _has_tiles()
    return torch.bfloat16 if fast else torch.float32


def _has_tiles() -> bool:
    """Whether oneDNN has AMX, and was not told to leave it."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return (most in ("", "ALL", "DEFAULT") or "AMX" in most) and known is not None and bool(known())
