"""Codes of states and their scales in one file: int8 or fp8 numbers, with a named tensor of what they are to be
multiplied by."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..types import QUANTISED, InputError
from .contents import Array, Contents
from .precisions import rows_of

SUFFIXES = ("_scale", "_scales", ".scale", ".scales")
NAMES = ("scale", "scales")


def scale_of(contents: Contents, name: str) -> Array | None:
    """The array of scales that belongs to the codes `name`: called like it, with `_scale` behind, or `scale` alone."""
    named = [contents.arrays.get(name + suffix) for suffix in SUFFIXES] + [contents.arrays.get(n) for n in NAMES]
    return next((array for array in named if array is not None), None)


def are_codes(contents: Contents, name: str) -> bool:
    """int8 with scales beside it, or fp8."""
    array = contents.arrays.get(name)
    return array is not None and (
        array.dtype in QUANTISED[:2] or (array.dtype == "int8" and scale_of(contents, name) is not None)
    )


def is_scale(contents: Contents, name: str) -> bool:
    """Whether an array is there to be multiplied by."""
    return any(
        scale.name == name
        for code in contents.arrays
        if code != name and are_codes(contents, code) and (scale := scale_of(contents, code)) is not None
    )


def unpacked(contents: Contents, array: Array) -> Array:
    """The numbers that codes stand for, in fp32; an array that is no codes as it is. InputError for scales that do not
    fit."""
    if not are_codes(contents, array.name):
        return array
    scale = scale_of(contents, array.name)
    if scale is not None:
        rows = list(array.shape[:-1])
        if not scale.dtype.startswith(("float", "bfloat")) or (
            list(scale.shape) not in (rows, [*rows, 1]) and math.prod(scale.shape) != 1
        ):
            raise InputError(
                f"{contents.path}: {scale} beside {array}, expected floats of shape {rows}: give one scale a row, or "
                "one for all"
            )

    def part(index: Any) -> Tensor:
        return rows_of(array.part(index), None if scale is None else _scales(scale, index))

    return replace(array, part=part)


def _scales(scale: Array, index: Any) -> Tensor:
    return scale.part(... if math.prod(scale.shape) == 1 else index)
