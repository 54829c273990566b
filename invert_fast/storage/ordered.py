"""recovered.jsonl in the order of its texts: lines are written as they are found, and sorted when all are there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np

from .atomic import replacing
from .json_text import parse

_INDEX = re.compile(rb'\{"index": (\d+), ')  # as our own lines begin: no need to read what is behind it


def index_of(line: bytes) -> int:
    """The text that a line of recovered.jsonl is of; ValueError, KeyError or TypeError for what is no such line."""
    if begins := _INDEX.match(line):
        return int(begins[1])
    index = parse(line)["index"]
    if not isinstance(index, int):
        raise TypeError(f"index {index!r}")
    return index


def put_in_order(path: Path) -> None:
    """Sort the whole lines of a recovered.jsonl by their texts, whole or not at all. What is in order is left alone.

    Beside the file there is a copy of it while that is done; in memory, 16 bytes a line.
    """
    with path.open("rb") as file:
        lengths, indices = [], []
        for line in file:
            lengths.append(len(line))
            indices.append(index_of(line))
        if all(a <= b for a, b in itertools.pairwise(indices)):
            return
        starts = np.concatenate([[0], np.cumsum(lengths)])
        with replacing(path) as sorted_file:
            for which in np.argsort(indices, kind="stable").tolist():
                file.seek(int(starts[which]))
                sorted_file.write(file.read(lengths[which]))
