"""How products are computed on a GPU: in full for what is verified, as coarsely as asked for in a search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

COMPUTE = ("float32", "tf32", "bfloat16")


@contextmanager
def products(device: torch.device, compute: str = "float32") -> Iterator[None]:
    """How products are computed on CUDA for the duration: float32 in full, as verification needs (TF32 residuals are
    ~1e-3, a thousand times the fp32 noise), or for a search tf32, or bfloat16 where autograd knows how."""
    if compute not in COMPUTE:
        raise ValueError(f"products in '{compute}' are unknown, expected one of {', '.join(COMPUTE)}")
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    # `allow_tf32`, the older name, cannot even be read where a program has set the newer one
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    matmul.fp32_precision = "tf32" if compute == "tf32" else "ieee"
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        # No cache of converted weights: what a graph captures must not be freed behind it.
        with torch.autocast("cuda", torch.bfloat16, enabled=compute == "bfloat16", cache_enabled=False):
            yield
    finally:
        matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before
