"""Which precision matrix products run fastest in on this device: asked of the machine, never of a clock.

A lens is trained and drafts in it, so that it must be the same in every process: measured times are not. On a busy
machine they have two runs of one fit end with two lenses.
"""

from __future__ import annotations

import os
from functools import cache

import torch

_TENSOR_CORES = 8, 0  # the first GPUs whose bf16 products are many times as fast as full fp32 ones
_INSTRUCTIONS = "_is_amx_tile_supported", "_is_avx512_bf16_supported"  # on processors, as PyTorch asks for them


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where its products are clearly faster than fp32 ones: on GPUs from Ampere on, and on processors
    with instructions for it (AMX, AVX-512 BF16); else fp32. For proposals only, never to verify."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= _TENSOR_CORES
    else:
        fast = device.type == "cpu" and _multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def _multiplies_bf16() -> bool:
    """Whether oneDNN has instructions for products in bf16, and was not told to leave them."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    allowed = most in ("", "ALL", "DEFAULT") or "AMX" in most or most.endswith("BF16")
    return allowed and any(getattr(torch.cpu, name, lambda: False)() for name in _INSTRUCTIONS)
