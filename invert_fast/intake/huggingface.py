"""What Hugging Face returns → a batch of one layer's states: outputs, tuples over layers, tuples over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.layer import Layer
from ..types import InputError
from .arrays import is_array, leading, tensor_of

_NAMES = ("hidden_states", "last_hidden_state", "decoder_hidden_states", "encoder_last_hidden_state")


def field(output: Any, name: str) -> Any:
    """A part of a model's output, whether this is an object or a mapping; None where it has no such."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def is_output(given: Any) -> bool:
    """What a model or `generate` returned, or a mapping like it."""
    if isinstance(given, Mapping):
        return any(name in given for name in (*_NAMES, "logits", "sequences"))
    return any(hasattr(given, name) for name in _NAMES)


def is_layers(given: Any) -> bool:
    """A tuple with an entry `[B, T, D]` a layer. A list of such is texts: what Hugging Face gives is a tuple."""
    return isinstance(given, tuple) and len(given) > 1 and len(leading(given) or ()) == 1


def is_steps(given: Any) -> bool:
    """A tuple over generated steps of tuples over layers."""
    return (
        isinstance(given, tuple) and bool(given) and isinstance(given[0], (tuple, list)) and is_layers(tuple(given[0]))
    )


def batch_of(given: Any, layer: Layer, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`[B, T, D]` of a layer and its mask `[B, T]`, of an output, a tuple over layers, or one over steps."""
    if is_layers(given):
        return tensor_of(given[entry(layer, len(given))]), mask
    if is_steps(given):
        return _generated(given, layer, mask, None)
    hidden, last = field(given, "hidden_states"), field(given, "last_hidden_state")
    if hidden is None and last is None:
        raise InputError(_missing(given))
    if last is not None and layer.normed and not layer.tied:
        return tensor_of(last), mask
    if hidden is None:
        if not layer.normed:
            raise InputError(
                f"this output has last_hidden_state alone, which is final_norm, expected states of {layer.name}: run "
                "the model with output_hidden_states=True, or make the inverter with layer='final_norm'"
            )
        return tensor_of(last), mask
    if is_steps(hidden):
        return _generated(hidden, layer, mask, field(given, "beam_indices"))
    if is_array(hidden):
        return tensor_of(hidden), mask
    if not isinstance(hidden, (tuple, list)) or len(leading(hidden) or ()) != 1:
        raise InputError(
            f"hidden_states are a {type(hidden).__name__} of other things than [B, T, D] tensors, expected one a "
            "layer: give the model's output as it is"
        )
    return tensor_of(hidden[entry(layer, len(hidden))]), mask


def entry(layer: Layer, count: int) -> int:
    """Which of `count` entries of `hidden_states` is of a layer; InputError where none is."""
    if count != layer.blocks + 1:
        raise InputError(
            f"hidden_states have {count} entries, expected {layer.blocks + 1}: the embeddings and one for each of this "
            f"model's {layer.blocks} blocks: give all of them, or the one tensor of {layer.name} (texts: as a list)"
        )
    if layer.near_head and not layer.normed and layer.tied:
        raise InputError(
            f"hidden_states do not have {layer.name}: their last entry is after the final norm, expected the raw "
            "output of the last block: keep it by a forward hook, or make the inverter with layer='final_norm'"
        )
    if layer.normed and not layer.tied:
        raise InputError(
            "hidden_states of this model end before its final norm, expected states behind it: give last_hidden_state, "
            "or make the inverter with layer=-1"
        )
    return layer.depth


def _missing(given: Any) -> str:
    """Why there are no states in an output."""
    if any(field(given, name) is not None for name in ("decoder_hidden_states", "encoder_last_hidden_state")):
        return (
            "this output is an encoder-decoder's, expected that of a decoder-only model: states of an encoder-decoder "
            "do not determine the text token by token"
        )
    has = ", ".join(map(str, list(given)[:6])) if isinstance(given, Mapping) else type(given).__name__
    return (
        f"this output has no hidden_states (it has {has}), expected them: run the model with output_hidden_states=True "
        "(generate also with return_dict_in_generate=True); logits go to invert_logits"
    )


def _generated(
    steps: Sequence[Sequence[Any]], layer: Layer, mask: Tensor | None, beams: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The prompt's rows and those of each later step in one, `[N, T, D]`; mask: the prompt's, `[B, P]`.

    The token that was generated last has no row: nothing was fed after it. beams `[N, steps]`: which row of each step a
    returned sequence went through (−1 after its end), as a beam search tells.
    """
    parts = [tensor_of(step[entry(layer, len(step))]) for step in steps]
    if bad := [p for p in parts if p.dim() != 3 or (p.shape[0], p.shape[2]) != (parts[0].shape[0], parts[0].shape[2])]:
        raise InputError(
            f"a generated step has states of shape {list(bad[0].shape)}, the prompt's are {list(parts[0].shape)}, "
            "expected alike but for the rows: give the hidden_states of one call of generate"
        )
    rows = parts[0].shape[0]
    if mask is not None:
        if mask.shape[-1] != parts[0].shape[1] or rows % max(1, len(mask)):
            raise InputError(
                f"the attention mask has shape {list(mask.shape)}, the prompt's states {list(parts[0].shape)}, "
                "expected [texts, rows of the prompt]: give the one that generate was given"
            )
        mask = mask.repeat_interleave(rows // len(mask), 0)  # several sequences a prompt stand one after another
    if beams is None:
        later = sum(p.shape[1] for p in parts[1:])
        ones = None if mask is None else mask.new_ones(rows, later)
        return torch.cat(parts, 1), None if mask is None or ones is None else torch.cat([mask, ones], 1)
    beams = beams.to(parts[0].device)
    if beams.dim() != 2 or len(parts) > beams.shape[1] or any(p.shape[1] != 1 for p in parts[1:]):
        raise InputError(
            f"beam_indices have shape {list(beams.shape)} for {len(parts)} steps, expected [sequences, steps]: give "
            "what generate returned, or generate without beams"
        )
    ways = beams[:, : len(parts)].clamp_min(0)
    hidden = torch.cat([part[ways[:, step]] for step, part in enumerate(parts)], 1)
    prompt = parts[0].new_ones(rows, parts[0].shape[1]) if mask is None else mask.to(beams.device)
    return hidden, torch.cat([prompt[ways[:, 0]].long(), (beams[:, 1 : len(parts)] >= 0).long()], 1)
