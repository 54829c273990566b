"""What was given → one `States` a text, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ..model.layer import Layer
from ..storage.masks import spans
from ..types import InputError, States
from .arrays import WANTED, depth, is_array, multiplied, tensor_of
from .huggingface import batch_of, entry, is_layers, is_output, is_steps


def texts_of(given: Any, layer: Layer, attention_mask: Any = None) -> list[States]:
    """The texts of anything that holds states of `layer`, in order.

    given: `States`; `[T, D]`, `[B, T, D]`, or `[L + 1, B, T, D]` of all layers, as a tensor, array or nested lists; a
    model's output, its tuple of `hidden_states`, or what `generate` returns; a mapping with one such thing; a list of
    any of these. attention_mask: `[B, T]`, for a batch (that of the prompts for what was generated), or a list of them
    for a list. Raises InputError for anything else.
    """
    return list(_texts(given, layer, attention_mask))


def _texts(given: Any, layer: Layer, mask: Any) -> Iterator[States]:
    if isinstance(given, States):
        _no_mask(mask, "a States")
        yield given
    elif isinstance(given, Tensor) and given.is_nested:
        yield from _texts(list(given.unbind()), layer, mask)
    elif is_array(given):
        yield from _cut(tensor_of(given), layer, _mask(mask))
    elif is_layers(given) or is_steps(given) or is_output(given):
        batch, mask = batch_of(given, layer, _mask(mask))
        yield from _cut(batch, layer, mask)
    elif isinstance(given, Mapping):
        given = multiplied(given)
        name = member(given)
        yield from _texts(given[name], layer, given.get("attention_mask") if mask is None else mask)
    elif isinstance(given, (str, bytes, PurePath)) or not isinstance(given, Iterable):
        what = f"'{str(given)[:40]}'" if isinstance(given, (str, PurePath)) else f"a {type(given).__name__}"
        raise InputError(f"states are {what}, {WANTED}; files go to `invert-fast invert`")
    else:
        yield from _several(list(given), layer, mask)


def _several(items: list[Any], layer: Layer, mask: Any) -> Iterator[States]:
    """Texts of a list: rows of numbers, one row an item, or anything an item."""
    if (deep := depth(items)) in (1, 2) or (deep and _rectangular(items)):
        yield from _cut(tensor_of(items), layer, _mask(mask))
        return
    if items and all(is_array(item) and len(item.shape) == 1 for item in items):
        rows = [tensor_of(item) for item in items]
        if len({row.shape for row in rows}) > 1:
            raise InputError(
                f"rows are {min(map(len, rows))} to {max(map(len, rows))} wide, expected all alike: {WANTED}"
            )
        yield from _cut(torch.stack(rows), layer, _mask(mask))
        return
    masks = [None] * len(items)
    if mask is not None:
        if is_array(mask) or len(mask) != len(items):
            got = f"of shape {list(mask.shape)}" if is_array(mask) else f"of {len(mask)} items"
            raise InputError(
                f"the attention mask is one {got}, expected a list of {len(items)}, one for each of the list: or give "
                "the states as one [B, T, D] tensor"
            )
        masks = list(mask)
    for item, own in zip(items, masks, strict=True):
        yield from _texts(item, layer, own)


def _cut(states: Tensor, layer: Layer, mask: Tensor | None) -> Iterator[States]:
    """The texts of one array: itself, or of a batch each without its padding."""
    if states.dim() == 4:
        states = states[entry(layer, len(states))]
    if states.dim() != 3:
        if mask is not None and states.dim() == 2:
            yield from _cut(states[None], layer, mask[None] if mask.dim() == 1 else mask)
        else:
            yield States(states, layer.name)  # which says what is wrong with other dimensions
        return
    if mask is None:
        yield from (States(rows, layer.name) for rows in states)
        return
    if mask.shape != states.shape[:2]:
        raise InputError(
            f"the attention mask has shape {list(mask.shape)}, the states {list(states.shape)}, expected "
            f"{list(states.shape[:2])}: give the mask of the same batch"
        )
    for rows, (start, stop) in zip(states, spans(mask), strict=True):
        yield States(rows[start:stop], layer.name)


def member(given: Mapping[Any, Any], wanted: Any = None) -> Any:
    """The name under which a mapping has states: `wanted`, or the only one with floats of two dimensions or more."""
    named = {
        name: value for name, value in given.items() if name == wanted or (wanted is None and _may_hold(name, value))
    }
    if len(named) == 1:
        return next(iter(named))
    several = [f"{name} {_words(value)}" for name, value in given.items() if is_array(value)]
    kind = f"no `{wanted}`" if wanted is not None else "no states that can be told from the rest"
    raise InputError(
        f"there is {kind} in a mapping of {len(given)} entries, expected one of "
        f"{', '.join(several[:12]) or 'tensors'}: name the one that is meant"
    )


def _may_hold(name: Any, value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return is_layers(value) or is_steps(value) or (bool(value) and is_array(value[0]))
    return name != "attention_mask" and is_array(value) and len(value.shape) >= 2 and "float" in str(value.dtype)


def _words(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _rectangular(items: list[Any]) -> bool:
    """Nested lists make one array."""
    try:
        tensor_of(items)
    except InputError:
        return False
    return True


def _mask(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    try:
        made = tensor_of(mask)
    except InputError:
        raise InputError(
            f"the attention mask is a {type(mask).__name__} of no numbers, expected [texts, rows] of ones and zeros: "
            "give the one that the tokenizer made"
        ) from None
    return made[None] if made.dim() == 1 else made


def _no_mask(mask: Any, what: str) -> None:
    if mask is not None:
        raise InputError(f"an attention mask came with {what}, expected it with a batch [B, T, D]: leave it out")
