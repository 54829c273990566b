"""What is in a file of arrays, seen without reading them: safetensors, .npy, .npz; Arrow and Parquet by `arrow.py`.

Any may be hostile or half-written: nothing is unpickled, every size is checked, and what is wrong is named.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize, safe_open
from torch import Tensor

from ..types import InputError

_DTYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2",
}  # fmt: skip
_MADE = {name: getattr(torch, name) for name in _DTYPES.values() if hasattr(torch, name)}
_MADE |= {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
FLOATS = ("float16", "bfloat16", "float32", "float64", "fp8_e4m3", "fp8_e5m2")
BOMB = 100, 1 << 28  # what unpacks to so many times its size, and so many bytes, is not states


@dataclass(frozen=True)
class Array:
    """One array of a file. dtype: PyTorch's name; part: `array[index]`, read when asked for; spans: first row of
    each text and the one after its last, where the file says."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: Callable[[Any], Tensor]
    spans: list[tuple[int, int]] | None = None

    def __str__(self) -> str:
        return f"`{self.name}` {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Contents:
    """The arrays of a file by name. kind: safetensors | npy | npz | arrow; columns: names with a type that is no array
    yet, and what opens them."""

    path: Path
    kind: str
    arrays: dict[str, Array]
    metadata: dict[str, str] = field(default_factory=dict)
    columns: dict[str, tuple[str, Callable[[], Array]]] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        return self.columns[name][1]() if name in self.columns else self.arrays[name]

    def describe(self) -> str:
        """Every name with type and shape, in words."""
        words = [*map(str, self.arrays.values()), *(f"`{name}` {kind}" for name, (kind, _) in self.columns.items())]
        return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "") or "nothing"


def brief(error: BaseException) -> str:
    """An error of a library, in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def open_npy(path: Path) -> Contents:
    """The array of a .npy file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # hostile bytes make the reader stumble in any way
        raise InputError(
            f"{path} is damaged or holds Python objects ({brief(error)}), expected one float array: "
            "save it with numpy.save"
        ) from error

    def part(index: Any) -> Tensor:
        return as_tensor(np.load(path, mmap_mode="r", allow_pickle=False)[index])

    return Contents(path, "npy", {path.stem: Array(path.stem, array.shape, _name(array.dtype), part)})


def open_npz(path: Path) -> Contents:
    """The arrays of a .npz archive. A member is unpacked whole when asked for, and the last one is kept."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                times, most = BOMB
                if info.file_size > most and info.file_size > times * info.compress_size:
                    raise InputError(
                        f"{path}: `{info.filename}` would unpack from {info.compress_size:,} to {info.file_size:,} "
                        "bytes, expected an array of states: save it as .npy if it is one"
                    )
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, _, dtype = read[version](member)
                    size = info.file_size - member.tell()
                if dtype.hasobject:
                    raise ValueError(f"`{info.filename}` is pickled")
                if size != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"`{info.filename}` has {size} bytes for {dtype} {list(shape)}")
                name = info.filename.removesuffix(".npy")
                arrays[name] = Array(name, shape, _name(dtype), partial(_unpacked_part, path, name))
    except InputError:
        raise
    except Exception as error:  # hostile bytes make the readers stumble in any way
        raise InputError(
            f"{path} is damaged or holds Python objects ({brief(error)}), expected float arrays: "
            "save them with numpy.savez"
        ) from error
    return Contents(path, "npz", arrays)


def _unpacked_part(path: Path, name: str, index: Any) -> Tensor:
    try:
        stat = os.stat(path)
        return as_tensor(_unpacked(path, name, stat.st_mtime_ns, stat.st_size)[index])
    except Exception as error:  # hostile bytes make the readers stumble in any way
        raise InputError(f"{path}: `{name}` is damaged ({brief(error)}): save it again with numpy.savez") from error


@lru_cache(maxsize=1)
def _unpacked(path: Path, name: str, _changed: int, _size: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[name]


def open_safetensors(path: Path) -> Contents:
    """The tensors of a safetensors file, and its metadata."""
    arrays = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                kind = part.get_dtype()
                reads = partial(_safe_part, path, name)
                arrays[name] = Array(name, tuple(part.get_shape()), _DTYPES.get(kind, str(kind)), reads)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is cut short or not a file of tensors ({brief(error)}), expected .safetensors, .npy, .npz, .pt, "
            ".arrow or .parquet: capture it again, or save it with safetensors.torch.save_file"
        ) from error
    return Contents(path, "safetensors", arrays, metadata)


def read_safetensors(data: bytes, name: str, largest_header: int = 1 << 20) -> Contents:
    """The tensors of a safetensors file that is in memory, such as the body of a request. name: for errors.

    largest_header: bytes; a header becomes many times as large when it is read. Raises InputError for what is none.
    """
    path, header = Path(name), int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or header > len(data) - 8:
            raise ValueError(f"{len(data):,} bytes, a header of {header:,}")
        if header > largest_header:
            raise ValueError(f"a header of {header:,} bytes, more than {largest_header:,}")
        parts, said = deserialize(data), json.loads(data[8 : 8 + header])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is cut short or no safetensors ({brief(error)}), expected what safetensors.torch.save "
            "gives: send these bytes"
        ) from error
    arrays = {}
    for tensor, about in parts:
        shape, kind = tuple(about["shape"]), str(_DTYPES.get(about["dtype"], about["dtype"]))
        arrays[tensor] = Array(tensor, shape, kind, partial(_part_of_bytes, about["data"], shape, kind))
    return Contents(path, "safetensors", arrays, said.get("__metadata__") or {})


def _part_of_bytes(data: bytearray, shape: tuple[int, ...], kind: str, index: Any) -> Tensor:
    dtype = _MADE.get(kind)
    if dtype is None:
        raise InputError(
            f"numbers of type {kind} cannot be read, expected floats, or integers for a mask: convert them"
        )
    return torch.frombuffer(data, dtype=dtype).view(shape)[index] if data else torch.zeros(shape, dtype=dtype)[index]


def _safe_part(path: Path, name: str, index: Any) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_slice(name)[index]


def _name(dtype: np.dtype) -> str:
    """Two bytes that numpy has no name for are bf16, which it lacks."""
    return "bfloat16" if dtype.str[1:] == "V2" else dtype.name


def as_tensor(array: np.ndarray) -> Tensor:
    """A copy, in PyTorch's byte order."""
    if _name(array.dtype) == "bfloat16":
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
