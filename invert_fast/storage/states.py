"""States files: safetensors of ours, and the arrays of others, of which one is taken as rows, batch or layers."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..types import InputError, States
from .arrow import is_arrow, open_arrow
from .contents import FLOATS, Array, Contents, open_npy, open_npz, open_safetensors
from .masks import spans
from .noise import Noise, noise_named
from .precisions import CODES, codes_of
from .scaled import SUFFIXES, are_codes, is_scale, unpacked
from .tensors import write_tensors
from .visible import visible

log = logging.getLogger("invert_fast")

FORMAT = "invert_fast-states-1"
_CHECK_ROWS = 1 << 16
_MOST_EMPTY = 1 << 16  # texts of a batch that are all empty: a shape may say any number of them, and costs nothing
_PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


@dataclass(frozen=True)
class StatesFile:
    """A states file on disk; rows are read when asked for, so its size does not matter.

    kind: that of its `Contents`; array: `[N, D]`, or `[B, T, D]` seen as B·T rows; lead: index of the layer where all
    are in front of these; spans: text i has rows spans[i][0] to spans[i][1]; layer, compute_dtype, model, noise: None
    when unknown.
    """

    path: Path
    kind: str
    array: Array
    spans: list[tuple[int, int]]
    dtype: str
    layer: str | None = None
    compute_dtype: str | None = None
    model: str | None = None
    noise: Noise | None = None
    lead: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def width(self) -> int:
        return self.array.shape[-1]

    def lengths(self) -> list[int]:
        return [stop - start for start, stop in self.spans]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `[stop − start, D]` of one text (or of several that lie one after the other) in the stored precision."""
        if len(self.array.shape) == 2:
            return self.array.part(slice(start, stop))
        if stop == start:
            return torch.zeros(0, self.width)
        text, first = divmod(start, self.array.shape[-2])
        return self.array.part((*self.lead, text, slice(first, first + stop - start)))

    def states(self, index: int, layer: int | str) -> States:
        """Text `index`; `layer` is used where the file names none."""
        return self._said(self.rows(*self.spans[index]), layer)

    def head(self, layer: int | str) -> States:
        """No rows, but all that is said of them: what can be checked before any work."""
        return self._said(self.rows(0, 0), layer)

    def _said(self, rows: Tensor, layer: int | str) -> States:
        return States(rows, self.layer or layer, self.dtype, self.compute_dtype or "", self.model, noise=self.noise)

    def without_model(self) -> StatesFile:
        """The same file, what it says of its model and layer disregarded because the caller insists."""
        return replace(self, model=None, layer=None)

    def check_finite(self, texts: Sequence[int] | None = None) -> None:
        """Refuse NaN and Inf by row number, before any work is done. texts: of these alone."""
        blocks = list(self._blocks() if texts is None else (self.spans[i] for i in texts))
        for start, stop in tqdm(blocks, desc=f"check {visible(self.path.name)}", unit="block", delay=2, leave=False):
            finite = self.rows(start, stop).isfinite().all(-1)
            if not bool(finite.all()):
                raise InputError(
                    f"{self.path}: row {start + int((~finite).int().argmax())} has NaN or Inf values, "
                    "expected finite numbers: capture it again, in bfloat16 or float32 if float16 overflowed; "
                    "where NaN stands for missing rows, `invert-fast mend --edit gap` recovers the rest"
                )

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """The rows of all texts: many at once where texts lie one after the other, else text by text."""
        if len(self.array.shape) == 2:
            rows = self.array.shape[0]
            yield from ((at, min(at + _CHECK_ROWS, rows)) for at in range(0, rows, _CHECK_ROWS))
        else:
            yield from (span for span in self.spans if span[1] > span[0])


def is_torch(head: bytes, path: Path) -> bool:
    """A file of torch.save, or another pickle: by its first bytes and, as it is a zip archive, by what is in it."""
    if head[:2] == b"PK":
        return not _is_npz(path)
    return head[:2] in _PICKLE


def _is_npz(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix == ".npz"


def first_bytes(path: Path) -> bytes:
    """The first eight bytes of a file; InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected a states file: make one with `invert-fast capture`")
    with path.open("rb") as file:
        return file.read(8)


def contents_of(path: Path) -> Contents:
    """The arrays of a file; InputError for pickles, files that are cut short, and those of another kind."""
    head = first_bytes(path)
    if is_torch(head, path):
        raise InputError(
            f"{path} is a pickle, which can run code and is never loaded here, expected .safetensors or .npy: save it "
            "with safetensors.torch.save_file"
        )
    if head[:6] == b"\x93NUMPY":
        return open_npy(path)
    if head[:2] == b"PK":
        return open_npz(path)
    return open_arrow(path, head) if is_arrow(path, head) else open_safetensors(path)


def open_states(
    path: Path, tensor: str | None = None, entry: Callable[[int], int] | None = None, usual: str = "hidden"
) -> StatesFile:
    """Look into a states file without reading its rows.

    tensor: name of the array that holds them, needed where there are several and none is called `usual`; entry: which
    of n layers is meant, for an array `[n, B, T, D]` of all. Raises InputError for whatever cannot be states.
    """
    return states_in(contents_of(path), tensor, entry, usual)


def states_in(
    contents: Contents,
    tensor: str | None = None,
    entry: Callable[[int], int] | None = None,
    usual: str = "hidden",
) -> StatesFile:
    """As `open_states`, of a file that was looked into before."""
    path, meta, name = contents.path, contents.metadata, choose(contents, tensor, usual)
    array = unpacked(contents, contents.array(name))
    shape = array.shape
    floats = array.dtype in FLOATS or are_codes(contents, name)
    if not floats or len(shape) not in ((2, 3, 4) if entry else (2, 3)):
        scales = f", its scales beside it as `{name}{SUFFIXES[0]}`" if array.dtype == "int8" else ""
        raise InputError(
            f"{path}: {array}, expected floats of shape [tokens, width] or [texts, tokens, width]{scales}: name the "
            "tensor of the states (--tensor)"
        )
    if not shape[-1] or (not math.prod(shape) and math.prod(shape[:-2]) > _MOST_EMPTY):
        raise InputError(
            f"{path}: {array} has no numbers in it, expected rows of some width: capture it again, or name the tensor "
            "of the states (--tensor)"
        )
    lead = (entry(shape[0]),) if entry and len(shape) == 4 else ()
    return StatesFile(
        path,
        contents.kind,
        array,
        _spans(contents, array),
        meta.get("dtype") or array.dtype,
        meta.get("layer"),
        meta.get("compute_dtype"),
        meta.get("model"),
        _noise(path, meta.get("noise")),
        lead,
    )


def _noise(path: Path, said: str | None) -> Noise | None:
    """The noise that a file says is in its states; what others mean by that word may be anything."""
    try:
        return noise_named(said)
    except InputError as error:
        log.warning("%s: %s; the states are taken to have none (--noise states it)", visible(str(path)), error)
        return None


def choose(contents: Contents, tensor: str | None, usual: str) -> str:
    """The name of the array that is meant."""
    names = [*contents.arrays, *contents.columns]
    if tensor is None:
        if usual in names:
            return usual
        may = [
            n
            for n, a in contents.arrays.items()
            if len(a.shape) >= 2 and (a.dtype in FLOATS or are_codes(contents, n)) and not is_scale(contents, n)
        ]
        may += [
            n for n, (kind, _) in contents.columns.items() if "list" in kind and ("float" in kind or "double" in kind)
        ]
        names = [n for n in may if n != "attention_mask"] or names
        if len(names) == 1:
            return names[0]
    elif tensor in names:
        return tensor
    missing = (
        f"no tensor `{tensor}`" if tensor is not None else f"no tensor `{usual}`, nor a single one that could be it"
    )
    raise InputError(
        f"{contents.path} has {missing}, expected one of what is in it ({contents.describe()}): name it with --tensor"
    )


def _spans(contents: Contents, array: Array) -> list[tuple[int, int]]:
    """Rows of each text: by the file's `offsets` or `attention_mask`, else all of them."""
    path, shape = contents.path, list(array.shape)
    if array.spans is not None:
        return array.spans
    if len(shape) > 2:
        texts, length = shape[-3:-1]
        within = [(0, length)] * texts
        if (mask := contents.arrays.get("attention_mask")) is not None:
            if list(mask.shape) != [texts, length]:
                raise InputError(
                    f"{path}: {mask}, expected [{texts}, {length}] as {array} has it: give the mask of the same batch"
                )
            within = spans(mask.part(slice(0, texts)))
        return [(text * length + start, text * length + stop) for text, (start, stop) in enumerate(within)]
    if (given := contents.arrays.get("offsets")) is None:
        mask = contents.arrays.get("attention_mask")
        if mask is None or math.prod(mask.shape) != shape[0]:
            return [(0, shape[0])]
        return spans(mask.part(slice(0, mask.shape[0])).reshape(1, -1))
    count = math.prod(given.shape)
    if given.dtype != "int64" or len(given.shape) != 1 or not count:
        raise InputError(f"{path}: {given}, expected int64 [texts + 1]: capture it again")
    offsets = given.part(slice(0, count)).tolist()
    if offsets[0] != 0 or offsets[-1] != shape[0] or any(b < a for a, b in itertools.pairwise(offsets)):
        raise InputError(
            f"{path}: `offsets` run from {offsets[0]} to {offsets[-1]}, expected to rise from 0 to the "
            f"{shape[0]} rows of `{array.name}`: capture it again"
        )
    return list(itertools.pairwise(offsets))


def write_states(
    path: Path,
    hidden: Iterable[Tensor],
    lengths: Sequence[int],
    width: int,
    dtype: torch.dtype,
    metadata: dict[str, str],
) -> None:
    """Write a states file row by row, whole or not at all: it appears under its name only when complete.

    hidden: one `[T_i, width]` tensor a text, of `lengths`; dtype: what they are stored in; of int8 and fp8 there are
    codes `hidden`, and their scales `hidden_scale`, one a row. The format is safetensors; its header can be written
    first because all sizes are known, so texts need not be held in memory.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
    shape, parts = [sum(lengths), width], ({"hidden": rows} for rows in hidden)
    streams = {"hidden": (dtype, shape)}
    if (precision := next((name for name, kind in CODES.items() if kind == dtype), None)) is not None:
        streams[f"hidden{SUFFIXES[0]}"] = torch.float32, shape[:1]
        parts = (dict(zip(streams, codes_of(part["hidden"], precision), strict=True)) for part in parts)
    write_tensors(path, {"offsets": offsets}, streams, parts, {**metadata, "format": FORMAT})
