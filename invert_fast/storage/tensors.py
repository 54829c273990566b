"""A safetensors file of tensors that are written row by row, so that they need not fit in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .atomic import replacing

_SAFE_DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
}  # fmt: skip


def write_tensors(
    path: Path,
    fixed: dict[str, np.ndarray],
    streams: dict[str, tuple[torch.dtype, list[int]]],
    parts: Iterable[dict[str, Tensor]],
    metadata: dict[str, str],
) -> None:
    """Write a safetensors file whole or not at all, some of its tensors row by row.

    fixed: int64 arrays known beforehand; streams: dtype and shape of the others; parts: some rows of each stream.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    at, start = 0, {}
    sizes = {name: ("I64", list(array.shape), array.nbytes) for name, array in fixed.items()}
    for name, (dtype, shape) in streams.items():
        sizes[name] = (_SAFE_DTYPES[dtype], shape, dtype.itemsize * math.prod(shape))
    for name, (kind, shape, size) in sizes.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        start[name], at = at, at + size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        base = file.write(struct.pack("<Q", len(text)) + text)
        for name, array in fixed.items():
            file.seek(base + start[name])
            file.write(array.tobytes())
        for part in parts:
            for name, rows in part.items():
                file.seek(base + start[name])
                start[name] += file.write(rows.to(streams[name][0]).contiguous().view(torch.uint8).numpy().tobytes())
        file.truncate(base + at)
