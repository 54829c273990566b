"""The user's model in another precision, for a few passes and without a second copy of its weights.

Each module's weights are converted when it is called and dropped when it returns, so that the most there ever is of
them is one module's. The user's model is not touched: modules are copies that share its tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..types import InputError, dtype_named

INT8 = "int8"  # weights only, rounded by output channel, and everything else as the model has it

_MARK = "_invert_fast_converted"


def model_in(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """`model` computing in `precision` (float32 | float16 | bfloat16), or with its weights rounded to int8. ValueError
    of one that came from here: its embedding would be taken apart twice, for other tokens' states."""
    if getattr(model, _MARK, False):
        raise ValueError(
            f"a model that was put in another precision already, expected the one it was made of ({precision})"
        )
    if precision == INT8:
        convert, inputs = _int8, None
    else:
        dtype = inputs = _compute_dtype(precision)

        def convert(module: nn.Module, weight: Tensor) -> Tensor:
            return weight.to(dtype)

    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    made = copy.deepcopy(model, shared).eval()
    setattr(made, _MARK, True)
    embedding = made.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):  # it is of gradients alone, and PyTorch looks for that row among the few
        embedding.padding_idx = None  # type: ignore[assignment]
    for module in made.modules():
        own = {name: p for name, p in module.named_parameters(recurse=False) if p.is_floating_point()}
        if own:
            module.register_forward_pre_hook(_enter(own, convert, inputs, rows=module is embedding))
            module.register_forward_hook(_leave(own), always_call=True)
    return made


def _compute_dtype(precision: str) -> torch.dtype:
    try:
        return dtype_named(precision)
    except InputError as error:
        raise InputError(f"precision '{precision}' is unknown, expected float32, float16, bfloat16 or int8") from error


def _enter(own: dict[str, nn.Parameter], convert: Callable, dtype: torch.dtype | None, rows: bool):
    def enter(module: nn.Module, args: tuple):
        if rows and len(args) == 1 and set(own) == {"weight"}:  # only the rows that are asked for
            ids, where = args[0].unique(return_inverse=True)
            module._parameters["weight"] = convert(module, own["weight"].data[ids])  # type: ignore[assignment]
            return (where,)
        for name, parameter in own.items():
            module._parameters[name] = convert(module, parameter.data)  # type: ignore[assignment]
        if dtype is None:
            return None
        return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)

    return enter


def _leave(own: dict[str, nn.Parameter]):
    def leave(module: nn.Module, _args, _out):
        module._parameters.update(own)

    return leave


def _int8(module: nn.Module, weight: Tensor) -> Tensor:
    """A linear map's weights at 255 levels a channel, scaled by the largest of each; others as they are."""
    if weight.dim() != 2 or isinstance(module, nn.Embedding):
        return weight
    inputs = 0 if type(module).__name__ == "Conv1D" else 1  # GPT-2's is stored the other way round
    scale = weight.abs().amax(inputs, keepdim=True).clamp_min(1e-30) / 127
    return (weight / scale).round() * scale
