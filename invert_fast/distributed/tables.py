"""Arrow tables of texts, a row each: states in, recoveries out. pyarrow is imported when one is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..storage.arrow import array_of
from ..storage.recovered import recovered_row
from ..types import InputError, Recovery

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-not-found]  # an extra

WHERE = "the batch"  # what errors call it
COLUMNS = (
    *("token_ids", "text", "certified", "status", "residual", "margin"),
    *("first_failure", "forward_tokens", "seconds", "alternatives"),
)


def states_column(table: pa.Table, wanted: str | None) -> str | None:
    """The column that holds the states: the one that is named, else the only one of nested floats; None where there is
    none. InputError for a name that is not there, and where there are several."""
    if wanted is not None:
        if wanted not in table.column_names:
            raise InputError(
                f"{WHERE} has no column `{wanted}`, expected one of {_names(table)}: name the one of the states "
                "(column=)"
            )
        return wanted
    may = [field.name for field in table.schema if _nested_floats(field.type)]
    if len(may) > 1:
        raise InputError(
            f"{WHERE} has {len(may)} columns that could be states ({', '.join(may)}), expected to be told which: name "
            "it (column=)"
        )
    return may[0] if may else None


def texts_of_column(table: pa.Table, name: str) -> list[Tensor]:
    """Rows `[T, D]` of each text of a column: lists of lists of floats, or the tensors of Ray and Arrow."""
    column = table.column(name)
    if _is_tensor(column.type):
        arrays = [row for chunk in column.chunks for row in _arrays(chunk)]
        if any(row.dtype.kind != "f" or row.ndim != 2 for row in arrays):
            odd = next(row for row in arrays if row.dtype.kind != "f" or row.ndim != 2)
            raise InputError(
                f"{WHERE}: column `{name}` has tensors {odd.dtype} {list(odd.shape)}, expected floats [tokens, width], "
                "a text each: is it the column of the states?"
            )
        return [torch.from_numpy(np.array(row)) for row in arrays]
    array = array_of(WHERE, name, column)
    if array.spans is None or not _nested_floats(column.type):
        raise InputError(
            f"{WHERE}: column `{name}` is {column.type}, a token a row, expected a list of such lists: put each text "
            "into one row, or read the file with read_states"
        )
    return [array.part(slice(start, stop)) for start, stop in array.spans]


def check_names(table: pa.Table, prefix: str) -> None:
    """InputError where a column has the name of one that is to come."""
    if double := [name for name in table.column_names if name in {prefix + column for column in COLUMNS}]:
        raise InputError(
            f"{WHERE} has columns {', '.join(double)} already, which would be those of what is recovered: rename or "
            "drop them, or give the new ones a prefix (prefix='recovered_')"
        )


def with_recoveries(table: pa.Table, recovered: Sequence[Recovery], prefix: str) -> pa.Table:
    """The table with what `recovered.jsonl` has of each text, in columns of their own; `prefix` before their names."""
    import pyarrow as pa  # type: ignore[import-not-found]

    numbers, ids = pa.list_(pa.float64()), pa.list_(pa.int64())
    alternatives = pa.list_(pa.struct({"position": pa.int64(), "token_ids": ids}))
    kinds = (
        *(ids, pa.string(), pa.bool_(), pa.list_(pa.string()), numbers, numbers),
        *(pa.int64(), pa.int64(), pa.float64(), alternatives),
    )
    rows = [recovered_row(recovery) for recovery in recovered]
    for row in rows:
        others = row.get("alternatives", {})
        row["alternatives"] = [{"position": int(position), "token_ids": also} for position, also in others.items()]
    for name, kind in zip(COLUMNS, kinds, strict=True):
        table = table.append_column(prefix + name, pa.array([row[name] for row in rows], kind))
    return table


def _names(table: pa.Table) -> str:
    return ", ".join(f"`{field.name}` {field.type}" for field in table.schema) or "none"


def _is_tensor(kind: Any) -> bool:
    """A type whose cells have a shape that Arrow's own lists do not show."""
    return hasattr(kind, "extension_name") and hasattr(kind, "shape")


def _nested_floats(kind: Any) -> bool:
    import pyarrow as pa  # type: ignore[import-not-found]

    if _is_tensor(kind):
        value = getattr(kind, "value_type", getattr(kind, "scalar_type", None))
        return len(kind.shape) == 2 and (value is None or pa.types.is_floating(value))
    kind, deep = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind, 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, deep = kind.value_type, deep + 1
    return deep == 2 and pa.types.is_floating(kind)


def _arrays(chunk: Any) -> list[np.ndarray]:
    """The tensors of an extension array, a cell each; cells that are empty are refused."""
    if chunk.null_count:
        raise InputError(f"{WHERE} has empty cells among its tensors, expected states in all: leave these rows out")
    if hasattr(chunk, "to_numpy_ndarray"):
        return list(chunk.to_numpy_ndarray())
    return [np.asarray(row) for row in chunk.to_numpy(zero_copy_only=False)]
