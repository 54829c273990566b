"""The file that a command writes: looked at before any work is done, and written by nobody else meanwhile."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..storage.atomic import sweep
from ..storage.lock import locked
from ..types import InputError

_READ = ("input", "states", "logits", "prompts", "text", "reference", "model", "unembedding", "tokenizer")


@contextmanager
def claimed(args: argparse.Namespace) -> Iterator[None]:
    """The `--output` of a command, if it has one that is a file. Raises InputError where it cannot be written, is one
    of the files that the command reads, or is being written by another process."""
    output = getattr(args, "output", None)
    if not isinstance(output, Path):
        yield
        return
    _check(output, args)
    with locked(output):
        sweep(output.parent, output.name)
        yield


def _check(output: Path, args: argparse.Namespace) -> None:
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}, expected one to write to: make it first")
    if output.exists() and not output.is_file():
        what = "a folder" if output.is_dir() else "no regular file"
        raise InputError(f"{output} is {what}, expected a file's name: give another --output")
    for name in _READ:
        for path in _files(getattr(args, name, None)):
            if _same(output, path):
                raise InputError(
                    f"{output} is both written and read (as {path} too), expected two files: nothing was touched, give "
                    "another --output"
                )


def _files(given: object) -> Iterator[Path]:
    """Files that an argument stands for: itself, or what lies in it (recovered texts may lie beside states)."""
    if not isinstance(given, (str, Path)):
        return
    path = Path(given)
    if path.is_dir():
        yield from (file for file in path.iterdir() if file.suffix != ".jsonl")
    else:
        yield path


def _same(one: Path, other: Path) -> bool:
    """The same file, by whatever name."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False
