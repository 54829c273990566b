"""States that cannot be of this model are refused before any work, by the text's number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..types import InputError, Noise, States


def check_lengths(decoder: Decoder, lengths: Sequence[int]) -> None:
    """InputError when a text has more rows than the model has positions."""
    longest = max(lengths, default=0)
    if longest > decoder.max_length:
        raise InputError(
            f"a text has {longest} rows, this model has {decoder.max_length} positions: "
            "give one text a tensor, and check the model"
        )


def checked(decoder: Decoder, index: int, item: States | Tensor) -> Tensor:
    """The rows `[T, D]` as fp32, or an InputError that names what is wrong with text `index`."""
    states = item if isinstance(item, States) else States(item, decoder.layer.name)
    rows = states.hidden.detach()
    if rows.shape[1] != decoder.width:
        raise InputError(
            f"text {index}: states are {rows.shape[1]} wide, this model's {decoder.layer.name} states "
            f"are {decoder.width}: {_instead(decoder, rows)}"
        )
    if states.model is not None and states.model != decoder.fingerprint():
        raise InputError(
            f"text {index}: states were captured from model {states.model}, this model is "
            f"{decoder.fingerprint()}: give the same checkpoint"
        )
    theirs = type(decoder.layer)(states.layer, decoder.layer.blocks, decoder.layer.tied).name
    if theirs != decoder.layer.name:
        raise InputError(
            f"text {index}: states are of layer {theirs}, this inverter is of {decoder.layer.name}: "
            f"make it with layer='{theirs}'"
        )
    if math.isfinite(float(rows.sum(dtype=torch.float64))):  # the common case, in one pass
        return rows.float()
    finite = rows.isfinite().all(-1)
    if not bool(finite.all()):
        raise InputError(
            f"text {index}: row {int((~finite).int().argmax())} has NaN or Inf values, expected finite "
            "numbers: capture it again, in bfloat16 or float32 if float16 overflowed"
        )
    return rows.float()


def noise_of(item: States | Tensor) -> Noise | None:
    """What these states say of it."""
    return item.noise if isinstance(item, States) else None


def of_noise(
    texts: Iterable[tuple[int, States | Tensor]], noise: Noise | None
) -> Iterator[tuple[int, States | Tensor]]:
    """The texts as they come; InputError for one that says it has other noise than what all are inverted with."""
    for index, item in texts:
        if isinstance(item, States) and item.noise not in (None, noise):
            raise InputError(
                f"text {index}: states say they have noise {item.noise}, the first text's are inverted with "
                f"{noise or 'none'}, expected the same for all: invert those of other noise by themselves"
            )
        yield index, item


def of_like_noise(
    texts: Sequence[States], noise: Noise | None
) -> Iterator[tuple[Noise | None, list[tuple[int, States]]]]:
    """Texts, each with its place, that go together: those that say they have the same noise; all, where `noise` is
    said of all."""
    groups: dict[Noise | None, list[tuple[int, States]]] = {}
    for place, text in enumerate(texts):
        own = noise or text.noise
        groups.setdefault(own, []).append((place, replace(text, noise=own)))
    yield from groups.items()


def _instead(decoder: Decoder, rows: Tensor) -> str:
    """What rows of another width probably are."""
    if rows.shape[1] in (decoder.vocab_size, decoder.usable_ids):
        return "as many as it has tokens: if these are logits, give them to invert_logits (`invert-fast logits invert`)"
    if rows.shape[0] == decoder.width:
        return "if these are [D, T], give their transpose"
    return "give the model they were captured from"
