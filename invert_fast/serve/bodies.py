"""The body of a request → its texts: safetensors, of which nothing is trusted.

`hidden [N, D]` with `offsets [texts + 1]`, as `invert-fast capture` writes; a batch `[B, T, D]` with its
`attention_mask`; or several tensors `[T, D]` under names of their own, each a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor

from ..intake.checks import check_lengths, checked
from ..intake.huggingface import entry
from ..inverter import Inverter
from ..storage.contents import FLOATS, Contents, read_safetensors
from ..storage.joined import Joined, Source, natural, parts_of
from ..storage.noise import Noise, noise_named
from ..storage.states import choose, states_in
from ..types import QUANTISED, InputError, coarsest
from .problems import ProblemError, of_input

NAME = "the body"  # what errors call it
USUAL, MASK = "hidden", "attention_mask"
_FLOATS = ("float32", "float16", "bfloat16")
STORED, COMPUTED = (*_FLOATS, *QUANTISED), (*_FLOATS, "int8")


@dataclass(frozen=True)
class Asked:
    """What a request says beside its body. tensor: which one holds the states, `*` and `?` for several; stored,
    computed: precisions, where the body is silent; insist: use states that say they are of another model or layer;
    noise: what was added to the states, instead of what the body says."""

    tensor: str | None = None
    stored: str | None = None
    computed: str | None = None
    insist: bool = False
    noise: str | None = None


@dataclass(frozen=True)
class Texts:
    """Rows `[T, D]` fp32 of each text of a request, the tensor each is from (None: there is one), and the precision,
    stored and computed, and the noise that all of them are taken to have."""

    rows: list[Tensor]
    names: list[str | None]
    stored: str
    computed: str
    noise: Noise | None = None

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def texts_in(body: bytes, inverter: Inverter, asked: Asked, most: int) -> Texts:
    """The texts of a body, all of them good. most: how many there may be. Raises ProblemError for anything else.

    It is not a turn on the model: the thread that reads bodies never waits for one, however long that is."""
    try:
        contents = read_safetensors(body, NAME)
    except InputError as error:
        raise of_input(error, "not-tensors") from error
    try:
        stated = noise_named(asked.noise)
    except InputError as error:
        raise of_input(error, "wrong-parameter") from error
    try:
        return _texts(contents, inverter, asked, most, stated)
    except InputError as error:
        raise of_input(error) from error


def _texts(contents: Contents, inverter: Inverter, asked: Asked, most: int, stated: Noise | None) -> Texts:
    decoder = inverter.decoder
    names = _names(contents, asked.tensor)
    _check_number(contents, names, most)
    parts = [states_in(contents, name, partial(entry, decoder.layer)) for name in names]
    source: Source = parts[0] if len(parts) == 1 else Joined(parts, names)
    if asked.insist:
        source = source.without_model()
    for name, part in parts_of(source):  # width, layer and model, before anything is allocated
        try:
            checked(decoder, 0, part.head(decoder.layer.name))
        except InputError as error:
            raise InputError(f"{name}: {error}" if name else str(error)) from error
    lengths = source.lengths()
    if len(lengths) > most:
        raise _too_many(len(lengths), most)
    check_lengths(decoder, [length + len(decoder.reading.prefix) for length in lengths])
    states = [source.states(index, decoder.layer.name) for index in range(len(lengths))]
    stored, computed = coarsest(states)
    stored, computed = asked.stored or stored, asked.computed or computed
    _check_precision(stored, computed)
    rows = [checked(decoder, index, one.hidden) for index, one in enumerate(states)]
    sources = [names[source.part(i)] if isinstance(source, Joined) else None for i in range(len(lengths))]
    said = next((one.noise for one in states), None)  # of a body, which has metadata once
    return Texts(rows, sources, stored, computed, _shared(stated or said))


def _shared(noise: Noise | None) -> Noise | None:
    """Texts of different clients share lanes, so that what one of them is told must not hang on another's rows."""
    if noise is not None and not noise.relative:
        raise InputError(
            f"{NAME} has noise '{noise}', in the units of the states, expected it over the root mean square of a row "
            f"('{noise.kind}:0.05'): invert it with `invert-fast invert --noise`"
        )
    return noise


def _names(contents: Contents, tensor: str | None) -> list[str]:
    """The tensors that hold states."""
    there = list(contents.arrays)
    if tensor is not None and set("*?") & set(tensor):
        fitting = [name for name in there if fnmatchcase(name, tensor)]
        if fitting:
            return sorted(fitting, key=natural)
    if tensor is None and USUAL not in there:
        texts = [name for name in there if name != MASK]
        alike = all(len(contents.arrays[n].shape) == 2 and contents.arrays[n].dtype in FLOATS for n in texts)
        if len(texts) > 1 and alike:
            return sorted(texts, key=natural)
    return [choose(contents, tensor, USUAL)]


def _check_number(contents: Contents, names: Sequence[str], most: int) -> None:
    """Too many texts are refused by the shapes alone: an empty tensor may claim any number of them."""
    batches = [shape[-3] for name in names if len(shape := contents.arrays[name].shape) > 2]
    offsets = contents.arrays.get("offsets")
    packed = offsets.shape[0] - 1 if offsets is not None and len(offsets.shape) == 1 else 0
    count = max(sum(batches), len(names), packed)
    if count > most:
        raise _too_many(count, most)


def _too_many(count: int, most: int) -> ProblemError:
    return ProblemError(
        "wrong-states", f"{NAME} has {count:,} texts, expected {most:,} or fewer: send them in several requests"
    )


def _check_precision(stored: str, computed: str) -> None:
    if stored not in (*STORED, "float64"):
        raise InputError(
            f"{NAME} says dtype '{stored[:40]}', expected one of {', '.join(STORED)}: correct its metadata"
        )
    if computed not in (*COMPUTED, "float64"):
        raise InputError(
            f"{NAME} says compute_dtype '{computed[:40]}', expected one of {', '.join(COMPUTED)}: correct its metadata"
        )
