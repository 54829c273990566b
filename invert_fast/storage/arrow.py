"""Columns of Arrow and Parquet files, as data sets keep them: lists of floats, a token or a whole text a row.

pyarrow is an extra: `pip install 'invert_fast[arrow]'`.
"""

from __future__ import annotations

import itertools
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..types import InputError
from .contents import BOMB, Array, Contents, brief
from .parquet_footer import values_by_column

SUFFIXES = {".parquet", ".arrow", ".feather", ".ipc"}


def is_arrow(path: Path, head: bytes) -> bool:
    """By its first bytes, or by its name (an Arrow stream has no mark)."""
    return head[:4] == b"PAR1" or head[:6] == b"ARROW1" or path.suffix in SUFFIXES


def open_arrow(path: Path, head: bytes) -> Contents:
    """The columns of a file; one is read, whole, when it is asked for. Raises InputError where pyarrow is missing."""
    try:
        pa = _pyarrow()
    except ImportError as error:
        raise InputError(
            f"{path} is an Arrow or Parquet file, which pyarrow reads, expected it to be installed: "
            "pip install 'invert_fast[arrow]', or save the states as .safetensors or .npy"
        ) from error
    try:
        if head[:4] == b"PAR1":
            schema = pa.parquet.read_schema(path)
        else:
            with pa.memory_map(str(path)) as source:
                schema = _reader(source, head).schema
        columns = {f.name: (str(_plain(f.type)), partial(_column, path, head, f.name)) for f in schema}
    except _unreadable() as error:
        raise InputError(
            f"{path} is damaged or no Arrow or Parquet file ({brief(error)}), expected columns of lists of floats: "
            "write it again"
        ) from error
    return Contents(path, "arrow", {}, {}, columns)


def _pyarrow() -> Any:
    """The library, where it is installed."""
    import_module("pyarrow.parquet")
    return import_module("pyarrow")


def _unreadable() -> tuple[type[Exception], ...]:
    """What pyarrow says of a file that is damaged, RuntimeError of what it did not expect itself."""
    return _pyarrow().ArrowException, OSError, ValueError, KeyError, RuntimeError


def _reader(source: Any, head: bytes) -> Any:
    pa = _pyarrow()
    return pa.ipc.open_file(source) if head[:6] == b"ARROW1" else pa.ipc.open_stream(source)


def _plain(kind: Any) -> Any:
    """An extension type, such as the arrays of Hugging Face's data sets, is what it is stored as."""
    return kind.storage_type if isinstance(kind, _pyarrow().BaseExtensionType) else kind


def _check_packing(path: Path, name: str) -> None:
    """InputError for a column that a few bytes stand for: one number and how often it is there, say."""
    with _pyarrow().parquet.ParquetFile(path) as file:
        rows = file.metadata.num_rows
    counts = [count for column, count in values_by_column(path) if f"{column}.".startswith(f"{name}.")]
    unpacked, size = 8 * max(rows, sum(counts)), path.stat().st_size
    times, most = BOMB
    if min(rows, *counts, 0) < 0 or (unpacked > most and unpacked > times * size):
        raise InputError(
            f"{path}: column `{name}` would unpack from {size:,} to about {unpacked:,} bytes, expected states: save "
            "them as .safetensors if they are"
        )


def _column(path: Path, head: bytes, name: str) -> Array:
    """One column of a file."""
    pa = _pyarrow()
    try:
        if head[:4] == b"PAR1":
            _check_packing(path, name)
            column = pa.parquet.read_table(path, columns=[name]).column(name)
        else:
            with pa.memory_map(str(path)) as source:
                column = _reader(source, head).read_all().column(name)
    except _unreadable() as error:
        raise InputError(f"{path}: column `{name}` cannot be read ({brief(error)}): write the file again") from error
    return array_of(str(path), name, column)


def array_of(where: str, name: str, column: Any) -> Array:
    """A column as rows of all texts one after the other, `[N, D]`, and the spans of the texts: a list of floats is a
    row of the one text that all are, a list of such lists a text. where: what errors call its file."""
    pa = _pyarrow()
    try:
        column.validate(full=True)  # nothing else looks whether lists lie within what they are lists of
        chunks = column.combine_chunks()
        values = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks
        values = values.storage if isinstance(values, pa.ExtensionArray) else values
        bounds = []
        while (
            pa.types.is_list(values.type)
            or pa.types.is_large_list(values.type)
            or pa.types.is_fixed_size_list(values.type)
        ):
            if values.null_count:
                raise InputError(
                    f"{where}: column `{name}` has empty cells, expected floats in all: leave these rows out"
                )
            lengths = values.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            bounds.append(np.concatenate([[0], np.cumsum(lengths)]))
            values = values.flatten()
        numbers = values.to_numpy(zero_copy_only=False)
    except _unreadable() as error:
        raise InputError(f"{where}: column `{name}` cannot be read ({brief(error)}): write the file again") from error
    if len(bounds) not in (1, 2) or numbers.dtype.kind != "f" or values.null_count:
        raise InputError(
            f"{where}: column `{name}` is {_plain(column.type)}, expected a list of floats a token, or a list of "
            "such lists a text: name the column of the states"
        )
    widths = np.diff(bounds[-1])
    width = int(widths[0]) if len(widths) else 0
    if (widths != width).any():
        raise InputError(
            f"{where}: column `{name}` has lists of {widths.min()} to {widths.max()} numbers, expected one width: is "
            "it the column of the states?"
        )
    tensor = torch.from_numpy(np.array(numbers).reshape(-1, width) if width else np.zeros((len(widths), 0), np.float32))
    texts = [0, len(widths)] if len(bounds) == 1 else bounds[0].tolist()
    spans = list(itertools.pairwise(texts))
    return Array(name, tuple(tensor.shape), numbers.dtype.name, tensor.__getitem__, spans)
