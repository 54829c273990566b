"""What the tests of all ops are given: random tensors, and the backends that run here."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from invert_fast import ops
from invert_fast.ops import native
from invert_fast.ops.table import HAS_TRITON

DTYPES = [torch.float32, torch.bfloat16]
METRICS = ["l1", "l2", "cosine", "dot"]  # as numbered in csrc/nearest.h
TRITON_DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)


def backends(op: str) -> list:
    """Those of the op's table; what cannot run here is skipped by name. Triton runs in its interpreter."""
    missing = {
        "cpp": "invert_fast._C is not built" if native._C is None else None,
        "triton": None if HAS_TRITON else "Triton is not installed",
        "cuda": "it takes tensors of a GPU: see test_cuda.py, and test_cuda_on_cpu.py",
    }
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(bool(missing.get(name)), reason=f"backend {name}: {missing.get(name)}")
        )
        for name in ["auto", *sorted(ops.BACKENDS[op])]
    ]
