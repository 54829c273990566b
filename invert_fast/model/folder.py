"""What a model folder asks for, looked at before anything is made of it: nothing outside, no more than it has weights.

A folder may come from anybody. Its weights have the bytes that they have; its config says how many there should be,
and what it has not a weight for would be made up in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn

from ..storage.json_text import parse
from ..types import InputError
from .footprint import SIZES, tensors_in

_COUNTS = re.compile(r"^num_|layers?$|experts?$|heads?$|labels$")  # names in a config of what there are so many of
_FEW = 4096  # of anything counted, where the weights do not say
_A_BYTE = 4  # numbers that a byte of weights may stand for, packed
_MADE_UP = 1 << 26  # numbers that a model may have beside its weights: rotation tables, masks


def check_folder(folder: Path, name: str) -> None:
    """InputError for an index that names files outside of the folder, and for a config that counts more layers, experts
    or heads than there are weights for."""
    for index in folder.glob("*.index.json"):
        named = _parsed(index, name).get("weight_map")
        for file in set(named.values()) if isinstance(named, dict) else ():
            if not isinstance(file, str) or PurePath(file).is_absolute() or ".." in PurePath(file).parts:
                raise InputError(
                    f"{index} names {file!r}, expected files in this folder: the folder is damaged or made to harm, "
                    "get it again from where it is from"
                )
    most = max(_FEW, len(tensors_in(folder)))
    for key, count in _counts(_parsed(folder / "config.json", name)):
        if count > most:
            raise InputError(
                f"the config of '{name}' says {key} {count:,}, expected at most {most:,}, as there are weights for: "
                "get it again from where it is from"
            )


def check_size(make: Callable[[], nn.Module], folder: Path, name: str) -> None:
    """InputError for a model, made without memory, that has many more numbers than the weights of its folder have
    bytes, packed as they may be."""
    there = sum(SIZES.get(kind, 1) * prod(shape) for kind, shape in tensors_in(folder))
    with torch.device("meta"):
        made = make()
    wanted = sum(tensor.numel() for tensor in (*made.parameters(), *made.buffers()))
    if wanted > _A_BYTE * there + _MADE_UP:
        raise InputError(
            f"the config of '{name}' asks for {wanted:,} numbers, expected as many as its {there:,} bytes of weights "
            "may be: get config.json from where the weights are from"
        )


def _parsed(path: Path, name: str) -> dict[str, Any]:
    try:
        found = parse(path.read_bytes(), finite=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({str(error)[:100]}), expected JSON: get '{name}' again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is a JSON {type(found).__name__}, expected an object: get '{name}' again")
    return found


def _counts(config: Any, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every count in a config, in those of its parts too."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict) and depth < 8:
            yield from _counts(value, depth + 1)
        elif isinstance(value, (int, float)) and _COUNTS.search(key):
            yield key, int(min(value, 1 << 62)) if value == value else 0
