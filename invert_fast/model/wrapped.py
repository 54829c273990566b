"""Models as people hand them over: compiled, with adapters, with weights that lie elsewhere or are packed."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..types import InputError

_FINGERPRINT_VALUES = 4096


def bare(model: Any) -> PreTrainedModel:
    """The model itself, of one that was compiled or has adapters: these stay in effect, their wrappers do not count."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and callable(getattr(model, "get_base_model", None)):  # PEFT
            inner = model.get_base_model()
        if inner is None:
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes token ids. InputError for weights that are nowhere, or of inference mode."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    for module in (embedding, model):
        for hook in hooks_of(module):
            if getattr(hook, "execution_device", None) is not None:  # accelerate moves weights there when they are used
                device = hook.execution_device
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    weight = next(iter(embedding.parameters()), None)
    weight = next(model.parameters()) if weight is None else weight
    if weight.is_meta:
        raise InputError(
            f"the weights of this {type(model).__name__} are on the meta device, expected numbers: load them first "
            "(from_pretrained, or load_state_dict with assign=True)"
        )
    if weight.is_inference():
        raise InputError(
            f"the weights of this {type(model).__name__} were made in inference mode, which no gradient can pass, "
            "expected plain ones: load the model outside of torch.inference_mode() (it may be used within it)"
        )
    return weight.device


def value_of(module: nn.Module, name: str) -> Tensor:
    """A parameter of a module as plain numbers, wherever it lies and however it is packed."""
    value = module._parameters[name]
    assert value is not None, f"{type(module).__name__} has a parameter '{name}'"
    if value.is_meta:
        for hook in hooks_of(module):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[name]
    value = value.detach()
    return value.dequantize() if hasattr(value, "dequantize") and type(value) is not Tensor else value


def fingerprint_of(model: PreTrainedModel) -> str:
    """`family:16 hex digits` over parameter names, shapes and a sample of values, rounded to bf16 so that loading the
    same checkpoint in another precision does not change it."""
    base, digest = model.base_model, hashlib.sha256()
    for name, _ in sorted(base.named_parameters()):
        owner, _, last = name.rpartition(".")
        value = value_of(base.get_submodule(owner), last)
        step = max(1, value.numel() // _FINGERPRINT_VALUES)
        sample = value.flatten()[::step].to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name}{list(value.shape)}".encode() + sample.tobytes())
    return f"{model.config.model_type}:{digest.hexdigest()[:16]}"


def hooks_of(module: nn.Module) -> list[Any]:
    """Those of accelerate, which bring the weights of a module when it is called."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
