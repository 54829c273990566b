"""nnsight: what a trace saved of a module, and that module → states of a layer.

with model.trace(prompts):
    mask = model.inputs[1]["attention_mask"].save()  # nnsight pads several prompts on the left
    saved = model.transformer.h[2].output.save()
recoveries = states_of(model, saved, model.transformer.h[2], attention_mask=mask).invert(*parts(model))
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..model.twin import body_of, find_blocks
from ..types import InputError
from .needs import NNSIGHT
from .tapped import Tapped

_WANTED = "expected the output of a block or of the final norm"


def states_of(model: Any, saved: Any, at: Any, attention_mask: Any = None, *, end: str = "output") -> Tapped:
    """States that a trace saved, with the layer they are of.

    model: the traced model; saved: the value of `at.output.save()`: a tensor, a block's tuple, or a list of these, one
    a trace; at: the module it is of; attention_mask: `[B, T]` of what the trace ran, where it has padding; end:
    `input` for the value of `at.input.save()`. Raises InputError for modules whose output is not the residual stream.
    """
    NNSIGHT.check()
    if end not in ("input", "output"):
        raise InputError(f"end is {end!r}, expected 'output' or 'input': which of the module's values was saved")
    held = [_rows(one) for one in saved] if isinstance(saved, list) else _rows(saved)
    return Tapped(held, _layer(_module(model), _module(at), end), attention_mask=attention_mask)


def parts(model: Any) -> tuple[Any, Any]:
    """The Hugging Face model that is traced, and its tokenizer: what `Inverter` and `Tapped.invert` take."""
    held = _module(model)
    if any(parameter.is_meta for parameter in held.parameters()):
        raise InputError("the weights of this nnsight model are not loaded yet, expected them: give it dispatch=True")
    return held, getattr(model, "tokenizer", None)


def _module(envoy: Any) -> Any:
    held = getattr(envoy, "_module", None)
    if not isinstance(held, nn.Module):
        raise InputError(
            f"a {type(envoy).__name__} came where nnsight's model or one of its modules was expected: give "
            "model.transformer.h[2] or the like, not its output"
        )
    return held


def _rows(saved: Any) -> Tensor:
    """Blocks of some families return a tuple that begins with their states."""
    value = saved[0] if isinstance(saved, tuple) and saved else saved
    if not isinstance(value, Tensor):
        raise InputError(
            f"what was saved is a {type(value).__name__}, expected a tensor: read it after the trace has "
            "ended, and call save() inside it"
        )
    return value


def _layer(model: Any, at: nn.Module, end: str) -> str:
    """The name of the layer that a module's input or output is."""
    parent, blocks = find_blocks(body_of(model), model.config.get_text_config().num_hidden_layers)
    children = list(parent.children())
    for index, block in enumerate(blocks):
        if block is at:
            depth = index + (end == "output")
            return f"block:{depth - 1}" if depth else "embeddings"
    behind = children[children.index(blocks) + 1 :]
    if at in behind and "Norm" in type(at).__name__:
        return "final_norm" if end == "output" else f"block:{len(blocks) - 1}"
    raise InputError(
        f"this is the {end} of a {type(at).__name__}, {_WANTED}: a part of a block is not the residual stream"
    )
