"""States files: safetensors of ours, one `[T, D]` tensor in safetensors, or .npy.

Any may be hostile or half-written: nothing is unpickled, every size is checked, and what is wrong is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ..types import InputError, States
from .tensors import write_tensors

FORMAT = "invert_fast-states-1"
_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz"}
_CHECK_ROWS = 1 << 16


@dataclass(frozen=True)
class StatesFile:
    """A states file on disk; rows are read when asked for, so its size does not matter.

    offsets `[P+1]`: text i has rows offsets[i]:offsets[i+1]; layer, dtype, compute_dtype, model: None when unknown.
    """

    path: Path
    offsets: list[int]
    width: int
    dtype: str
    layer: str | None = None
    compute_dtype: str | None = None
    model: str | None = None
    tensor: str | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> list[int]:
        return [b - a for a, b in itertools.pairwise(self.offsets)]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `[stop − start, D]` in the stored precision."""
        if self.tensor is None:
            return torch.from_numpy(np.array(np.load(self.path, mmap_mode="r", allow_pickle=False)[start:stop]))
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self.tensor)[start:stop]

    def states(self, index: int, layer: int | str) -> States:
        """Text `index`; `layer` is used where the file names none."""
        return States(
            self.rows(self.offsets[index], self.offsets[index + 1]),
            self.layer or layer,
            self.dtype,
            self.compute_dtype or "",
            self.model,
        )

    def check_finite(self) -> None:
        """Refuse NaN and Inf by row number, before any work is done."""
        starts = range(0, self.offsets[-1], _CHECK_ROWS)
        for start in tqdm(starts, desc="check", unit="block", delay=2, leave=False):
            finite = self.rows(start, min(start + _CHECK_ROWS, self.offsets[-1])).isfinite().all(-1)
            if not bool(finite.all()):
                raise InputError(
                    f"{self.path}: row {start + int((~finite).int().argmax())} has NaN or Inf values, "
                    "expected finite numbers: capture it again, in bfloat16 or float32 if float16 overflowed"
                )


def open_states(path: Path, tensor: str = "hidden") -> StatesFile:
    """Look into a states file without reading its rows: ours, one `[T, D]` tensor in safetensors, or .npy.

    tensor: name of the one that holds the rows.

    Raises InputError for pickles, files that are cut short or of another kind, and offsets that do not fit.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected a states file: make one with `invert-fast capture`")
    with path.open("rb") as file:
        head = file.read(8)
    if path.suffix in _PICKLES or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
        raise InputError(
            f"{path} is a pickle or an archive, which can run code and is never loaded, expected .safetensors "
            "or .npy: save it with safetensors.torch.save_file"
        )
    if head[:6] == b"\x93NUMPY":
        return _open_npy(path)
    return _open_safetensors(path, tensor)


def _open_npy(path: Path) -> StatesFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} is damaged or holds Python objects ({error}), expected one float [T, D] array"
        ) from error
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"{path} holds {array.dtype} {list(array.shape)}, expected one float [tokens, width] array")
    return StatesFile(path, [0, array.shape[0]], array.shape[1], str(array.dtype))


def _open_safetensors(path: Path, tensor: str) -> StatesFile:
    try:
        with safe_open(path, framework="pt") as file:
            names, meta = list(file.keys()), file.metadata() or {}
            name = tensor if tensor in names else names[0] if len(names) == 1 else None
            if name is None:
                raise InputError(
                    f"{path} has tensors {', '.join(sorted(names)[:6]) or 'none'}, expected `{tensor}` and "
                    "`offsets`, or a single [T, D] tensor"
                )
            part = file.get_slice(name)
            shape, kind = part.get_shape(), part.get_dtype()
            offsets = file.get_tensor("offsets") if "offsets" in names else None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is cut short or not a safetensors file ({error}), expected a states file: capture it again"
        ) from error
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}.get(kind)
    if len(shape) != 2 or dtype is None:
        raise InputError(f"{path}: tensor `{name}` is {kind} {shape}, expected floats of shape [tokens, width]")
    rows = [0, shape[0]]
    if offsets is not None:
        if offsets.dtype != torch.int64 or offsets.dim() != 1 or not len(offsets):
            raise InputError(f"{path}: `offsets` is {offsets.dtype} {list(offsets.shape)}, expected int64 [texts + 1]")
        rows = offsets.tolist()
        if rows[0] != 0 or rows[-1] != shape[0] or any(b < a for a, b in itertools.pairwise(rows)):
            raise InputError(
                f"{path}: `offsets` run from {rows[0]} to {rows[-1]}, expected to rise from 0 to the "
                f"{shape[0]} rows of `{tensor}`"
            )
    return StatesFile(
        path,
        rows,
        shape[1],
        meta.get("dtype") or dtype,
        meta.get("layer"),
        meta.get("compute_dtype"),
        meta.get("model"),
        name,
    )


def write_states(
    path: Path,
    hidden: Iterable[Tensor],
    lengths: Sequence[int],
    width: int,
    dtype: torch.dtype,
    metadata: dict[str, str],
) -> None:
    """Write a states file row by row, whole or not at all: it appears under its name only when complete.

    hidden: one `[T_i, width]` tensor a text, of `lengths`. The format is safetensors; its header can be written first
    because all sizes are known, so texts need not be held in memory.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    streams = {"hidden": (dtype, [sum(lengths), width])}
    write_tensors(
        path, {"offsets": offsets}, streams, ({"hidden": rows} for rows in hidden), {**metadata, "format": FORMAT}
    )


def head(source: StatesFile, layer: int | str) -> States:
    """No rows, but all that is said of them: what can be checked before any work."""
    return States(source.rows(0, 0), source.layer or layer, source.dtype, source.compute_dtype or "", source.model)


def without_model(source: StatesFile) -> StatesFile:
    """The same file, its fingerprint disregarded because the caller insists."""
    return replace(source, model=None)
