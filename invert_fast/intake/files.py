"""Files and folders of states → a source of texts of one layer, whatever they were saved with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from ..model.layer import Layer
from ..storage.arrow import SUFFIXES
from ..storage.contents import Contents
from ..storage.joined import Joined, Source, natural, parts_of
from ..storage.states import contents_of, first_bytes, is_torch, states_in
from ..storage.torch_file import load_torch
from ..storage.visible import visible
from ..types import InputError, States
from .arrays import multiplied
from .huggingface import entry, is_output
from .texts import member, texts_of

TORCH = {".pt", ".pth", ".bin"}
KNOWN = {".safetensors", ".npy", ".npz", *TORCH, *SUFFIXES}
log = logging.getLogger("invert_fast")


@dataclass(frozen=True)
class Loaded:
    """Texts that are in memory. path: where they are from."""

    path: Path
    texts: Sequence[States]

    def lengths(self) -> list[int]:
        return [*map(len, self.texts)]

    def states(self, index: int, layer: int | str) -> States:
        return self.texts[index]

    def head(self, layer: int | str) -> States:
        return replace(self.texts[0], hidden=self.texts[0].hidden[:0])

    def without_model(self) -> Loaded:
        return self  # nothing that is loaded names one

    def check_finite(self, texts: Sequence[int] | None = None) -> None:
        """InputError for NaN and Inf, by text and row, before any work is done. texts: of these alone."""
        for index in range(len(self.texts)) if texts is None else texts:
            finite = self.texts[index].hidden.isfinite().all(-1)
            if not bool(finite.all()):
                raise InputError(
                    f"{self.path}: text {index}, row {int((~finite).int().argmax())} has NaN or Inf values, expected "
                    "finite numbers: capture it again, in bfloat16 or float32 if float16 overflowed; "
                    "where NaN stands for missing rows, `invert-fast mend --edit gap` recovers the rest"
                )


def named_layer(path: Path) -> str | None:
    """The layer that a file, or the first of a folder, says its states are of; None where it does not."""
    first = files_in(path)[0] if path.is_dir() else path
    return None if is_torch(first_bytes(first), first) else contents_of(first).metadata.get("layer")


def open_source(path: Path, layer: Layer, tensor: str | None = None) -> Source:
    """The texts of a file, or of all files of a folder, in the order of their names.

    tensor: the name of what holds the states where there is more than one such thing; with `*` or `?` in it, all
    that it fits, each being a text (or a batch). Raises InputError for what cannot be states, by its file's name.
    """
    if not path.is_dir():
        return _open(path, layer, tensor)
    parts = [(f, name, part) for f in files_in(path) for name, part in parts_of(_open(f, layer, tensor))]
    return Joined([part for *_, part in parts], [file.name + (f": {name}" if name else "") for file, name, _ in parts])


def files_in(folder: Path) -> list[Path]:
    """The states files that lie in a folder itself, numbers in their names by value; InputError where there is none."""
    everything = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    files = sorted((path for path in everything if path.suffix in KNOWN), key=lambda path: natural(path.name))
    if not files:
        raise InputError(
            f"{folder} has {len(everything)} files and none of states, expected {', '.join(sorted(KNOWN))}: give the "
            "folder that they lie in"
        )
    if len(files) < len(everything):
        log.info("%s: %d other files are left out", folder, len(everything) - len(files))
    return files


def _open(path: Path, layer: Layer, tensor: str | None) -> Source:
    """The texts of a file; what is wrong is said with its name."""
    try:
        return _opened(path, layer, tensor)
    except InputError as error:
        if visible(str(path)) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error


def _opened(path: Path, layer: Layer, tensor: str | None) -> Source:
    if is_torch(first_bytes(path), path):
        given = load_torch(path)
        given = multiplied(given) if isinstance(given, Mapping) and not is_output(given) else given
        meant = _meant(given, tensor)
        mask = given.get("attention_mask") if isinstance(given, Mapping) and not isinstance(meant, list) else None
        texts = texts_of(meant, layer, mask)
        if not texts:
            raise InputError(f"{path} has no texts in it, expected a tensor of states: save one with torch.save")
        return Loaded(path, texts)
    contents, which = contents_of(path), partial(entry, layer)
    if tensor is None or not set("*?") & set(tensor):
        return states_in(contents, tensor, which)
    names = _fitting(contents, tensor)
    return Joined([states_in(contents, name, which) for name in names], names)


def _fitting(contents: Contents, pattern: str) -> list[str]:
    names = [name for name in (*contents.arrays, *contents.columns) if fnmatchcase(name, pattern)]
    if not names:
        raise InputError(
            f"{contents.path} has no tensor like `{pattern}`, expected one of what is in it ({contents.describe()}): "
            "name it with --tensor"
        )
    return sorted(names, key=natural)


def _meant(given: Any, tensor: str | None) -> Any:
    """What was named of a mapping, by a pattern in a list."""
    if tensor is None or not isinstance(given, Mapping):
        if tensor is not None:
            raise InputError(
                f"there is a {type(given).__name__}, expected a mapping with `{tensor}`: leave --tensor out"
            )
        return given if not isinstance(given, Mapping) or is_output(given) else given[member(given)]
    names = [name for name in given if fnmatchcase(str(name), tensor)]
    if set("*?") & set(tensor) and names:
        return [given[name] for name in sorted(names, key=lambda name: natural(str(name)))]
    return given[names[0] if names else member(given, tensor)]
