"""Whatever holds numbers → a tensor: PyTorch, numpy (its bf16 too), anything with `__array__`, nested lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..storage.contents import as_tensor
from ..storage.precisions import rows_of
from ..storage.scaled import NAMES, SUFFIXES
from ..types import InputError

WANTED = (
    "expected one [T, D] array, a list of them, [B, T, D] (with attention_mask=… if padded), or what a Hugging Face "
    "model returns: give the rows of hidden_states[layer]"
)


def is_array(given: Any) -> bool:
    """A tensor, or what numpy takes for an array as it is."""
    return isinstance(given, (Tensor, np.ndarray)) or (hasattr(given, "__array__") and hasattr(given, "shape"))


def depth(given: Any) -> int:
    """How deep lists of numbers are nested, 0 for what is not such a list."""
    level = 0
    while isinstance(given, (list, tuple)) and given:
        given, level = given[0], level + 1
    return level if isinstance(given, (int, float, np.number)) else 0


def tensor_of(given: Any) -> Tensor:
    """The numbers as a tensor of the same precision, where they lie already if that is in a tensor.

    Raises InputError for what has no numbers: ragged lists, objects, tensors without data.
    """
    if isinstance(given, Tensor):
        return _plain(given)
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"states are a {type(given).__name__} that makes no array ({' '.join(str(error).split())[:100]}), {WANTED}"
        ) from error
    return from_numpy(array)


def from_numpy(array: np.ndarray) -> Tensor:
    """A copy of an array as a tensor; two bytes that numpy has no name for are bf16, which it lacks."""
    bf16 = array.dtype.name == "bfloat16" or array.dtype.str[1:] == "V2"
    if not bf16 and (array.dtype.kind not in "fiub" or array.dtype.itemsize > 8):
        kind = "Python objects" if array.dtype.hasobject else str(array.dtype)
        raise InputError(f"states are a numpy array of {kind} {list(array.shape)}, expected floats: {WANTED[9:]}")
    return as_tensor(array)


def _plain(given: Tensor) -> Tensor:
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        kind = "meta" if given.is_meta else "quantized" if given.is_quantized else str(given.layout)
        raise InputError(
            f"states are a {kind} tensor of {list(given.shape)}, expected a dense one that holds its numbers: "
            "give .dequantize() or .to_dense() of it, or capture it again"
        )
    return given.detach()


def multiplied(given: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The same entries, but for codes (int8, fp8) with scales beside them, named as in files: these are the rows that
    they stand for, in fp32, and the scales are gone."""
    made, beside = dict(given), {name for name in given if isinstance(name, str)}
    for name in beside:
        kind = str(getattr(given[name], "dtype", "")).removeprefix("torch.")
        found = next((s for s in (*(name + end for end in SUFFIXES), *NAMES) if s in beside and s != name), None)
        if found is not None and is_array(given[name]) and (kind == "int8" or kind.startswith("float8")):
            codes, scale = tensor_of(given[name]), tensor_of(given[found])
            if list(scale.shape) not in (list(codes.shape[:-1]), [*codes.shape[:-1], 1]) and scale.numel() != 1:
                raise InputError(
                    f"scales `{found}` have shape {list(scale.shape)}, the codes `{name}` {list(codes.shape)}, "
                    f"expected {list(codes.shape[:-1])}: give one a row, or one for all"
                )
            made[name] = rows_of(codes, scale)
            made.pop(found, None)
    return made


def leading(given: Sequence[Any]) -> set[tuple[int, ...]] | None:
    """Shapes but for the width, where all of `given` are `[B, T, D]` arrays; None where some are not."""
    if all(is_array(entry) and len(entry.shape) == 3 for entry in given):
        return {tuple(int(n) for n in entry.shape[:2]) for entry in given}
    return None
