"""A model's own forward pass, for those that do not run in our way: states of whole texts, and of what comes next.

What a model keeps of a text (keys and values, states of a recurrence) is a matter of its own: it is taken as it is
handed out, and copied for each candidate that goes on from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..calls.interrupts import raise_interrupt
from ..types import InputError
from .layer import Layer
from .reading import AS_CAPTURED, Reading, positions_from
from .twin import body_of, find_blocks

MOST_AT_ONCE = 1 << 14
_CACHES = ("past_key_values", "cache_params", "state")  # what families call what they keep


class OwnPass:
    """States of one layer of a model by its own forward pass.

    keeps: whether what it hands out can be gone on from, else every text is run from its start; at_once: how many
    tokens one call should have, since some passes make a great deal of each. `trial.py` finds out both.
    """

    def __init__(self, model: PreTrainedModel, layer: Layer):
        self.body, self.layer, self.keeps = body_of(model), layer, True
        self.reading, self.at_once = AS_CAPTURED, MOST_AT_ONCE

    def read_as(self, reading: Reading, device: torch.device) -> None:
        """From now on as states are read. InputError for an offset of positions that the model does not know."""
        self.reading, self.keeps = reading, self.keeps and not reading.position_offset
        try:
            self.states(torch.zeros(1, 1, dtype=torch.long, device=device))
        except TypeError as error:
            raise InputError(
                f"{type(self.body).__name__} knows no positions, expected no offset of them: its states do not hang on "
                "where a text began"
            ) from error

    def states(self, ids: Tensor) -> Tensor:
        """`[B, T] → [B, T, D]`."""
        found = []
        for part in ids.split(max(1, self.at_once // max(1, ids.shape[1]))):
            places = positions_from(self.reading.position_offset, part)
            found.append(self._run(input_ids=part, use_cache=False, **places)[0])
        return torch.cat(found)

    def states_of(self, embeds: Tensor) -> Tensor:
        """Of embeddings `[B, T, D_e]`, differentiably. Raises InputError for a model that takes ids alone."""
        try:
            places = positions_from(self.reading.position_offset, embeds[..., 0])
            return self._run(inputs_embeds=embeds, use_cache=False, **places)[0]
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"{type(self.body).__name__} takes token ids alone, expected embeddings too for a search over them: "
                "use a strategy that tries tokens (auto, prior, exhaustive)"
            ) from error

    def begin(self, ids: Tensor) -> tuple[Tensor, Any]:
        """States `[B, T, D]` of texts, and what the model keeps of them. LookupError if it hands out nothing."""
        return self._going_on(self._run(input_ids=ids, use_cache=True))

    def step(self, kept: Any, ids: Tensor) -> tuple[Tensor, Any]:
        """One more token `[B, 1]` each: states `[B, 1, D]`, and what is kept then. `kept` is used up by it."""
        name, cache = kept
        return self._going_on(self._run(input_ids=ids, use_cache=True, **{name: cache}))

    def _run(self, **given) -> tuple[Tensor, Any]:
        states, out = read(self.body, self.layer, **given)
        first = next(iter(given.values()))  # ids or embeddings; a model that is spread ends on another device
        return self.reading.seen(states).to(first.device), out

    @staticmethod
    def _going_on(found: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        states, out = found
        for name in _CACHES:
            if getattr(out, name, None) is not None:
                return states, (name, getattr(out, name))
        raise LookupError("it hands out nothing to go on from")


@torch.no_grad()
def ends_normed(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether the last of a model's `hidden_states` is what its final norm gives (in a few, what that is given)."""
    try:
        one = torch.zeros(1, 1, dtype=torch.long, device=device)
        out = body_of(model)(one, output_hidden_states=True, use_cache=False)
        last, normed = out.hidden_states[-1], out.last_hidden_state
    except (TypeError, AttributeError, ValueError, RuntimeError, LookupError) as error:  # of which the trial will tell
        raise_interrupt(error)
        return True
    return last.shape != normed.shape or bool(torch.equal(last.nan_to_num(), normed.nan_to_num()))


def read(body: torch.nn.Module, layer: Layer, **given) -> tuple[Tensor, Any]:
    """States `[B, T, D]` of a layer, by the body's unmodified forward pass, and all that it returned. InputError where
    there are several states a token."""
    if layer.normed:
        out = body(**given)
        return out.last_hidden_state, out
    if layer.depth < layer.blocks:
        out = body(**given, output_hidden_states=True)
        states = out.hidden_states[layer.depth]
        if states.dim() != 3:
            raise InputError(
                f"between its blocks {type(body).__name__} has several streams, {list(states.shape)}, expected states "
                "[B, T, D]: take the last layer (--layer final_norm)"
            )
        return states, out
    kept = {}

    def keep(_module, _args, out):
        kept["states"] = out[0] if isinstance(out, tuple) else out

    handle = find_blocks(body, layer.blocks)[1][-1].register_forward_hook(keep)
    try:
        out = body(**given)
    finally:
        handle.remove()
    return kept["states"], out


def joined(kept: list[Any], rows: list[int]) -> Any:
    """What is kept of several batches of texts of one length, so many `rows` each, as of one batch; nothing of the
    originals is shared."""

    def join(*parts: Tensor) -> Tensor:
        each = all(part.dim() and len(part) == count for part, count in zip(parts, rows, strict=True))
        return torch.cat(parts) if each else parts[0].clone()

    return _mapped(join, *kept)


def picked(kept: Any, rows: Tensor, batch: int) -> Any:
    """Copies of what is kept of some rows `[n]` of a batch, which may come several times."""
    return _mapped(lambda part: part[rows] if part.dim() and len(part) == batch else part.clone(), kept)


def bytes_of(kept: Any) -> int:
    """What it takes of memory."""
    found: list[Tensor] = []

    def note(part: Tensor) -> Tensor:
        found.append(part)
        return part

    _mapped(note, kept)
    return sum(part.nbytes for part in found)


def _mapped(change: Callable[..., Tensor], *kept: Any) -> Any:
    """The like of what was kept, with its tensors changed, however families hold them."""
    first = kept[0]
    if isinstance(first, Tensor):
        return change(*kept)
    if isinstance(first, dict):
        made = copy.copy(first)
        made.update({key: _mapped(change, *(one[key] for one in kept)) for key in first})
        return made
    if isinstance(first, (list, tuple)):
        parts = [_mapped(change, *parts) for parts in zip(*kept, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if hasattr(first, "__dict__") and not callable(first) and not isinstance(first, PreTrainedConfig):
        made = copy.copy(first)
        for name in vars(first):
            setattr(made, name, _mapped(change, *(getattr(one, name) for one in kept)))
        return made
    return first
