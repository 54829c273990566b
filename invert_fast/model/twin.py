"""The structural twin: a copy of a model's body that shares every tensor, ends at a layer, and attends in our way.

Module objects and configs are copies, so that nothing done here shows in the user's model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..ops.gelu import Gelu
from ..ops.linear import pack_linears
from ..types import InputError


def body_of(model: PreTrainedModel) -> nn.Module:
    """The decoder that states are of; of a model that reads more than text, its text model."""
    text_alone = model.config.get_text_config() is model.config
    found = [*([model.base_model] if text_alone else []), model.get_decoder(), *model.children()]
    return next(body for body in found if body is not model and isinstance(body, PreTrainedModel))


def find_blocks(body: nn.Module, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """The module that holds the decoder blocks, and their list: the one ModuleList of `count` modules, alike if any."""
    lists = [
        (parent, child)
        for parent in body.modules()
        for child in parent.children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if lists:
        return min(lists, key=lambda found: len({type(block) for block in found[1]}))
    raise InputError(f"no list of {count} blocks found in {type(body).__name__}: this family needs its own adapter")


def _after_blocks(body: nn.Module, count: int) -> list[str]:
    """Names of what the holder of the blocks calls after the last one (the final norm), found by watching one token."""
    parent, blocks = find_blocks(body, count)
    called: list[str] = []
    handles = [blocks[-1].register_forward_hook(lambda *_: called.clear())]
    for name, child in parent.named_children():
        if child is not blocks:
            handles.append(child.register_forward_hook(lambda *_, name=name: called.append(name)))
    try:
        with torch.no_grad():
            body(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(body.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return called


def structural_twin(model: PreTrainedModel, depth: int, normed: bool, attention: str) -> nn.Module:
    """The first `depth` blocks of the model's body, with the final norm or without, and with another attention."""
    base, blocks_in_all = body_of(model), model.config.get_text_config().num_hidden_layers
    after = _after_blocks(base, blocks_in_all)
    shared = {id(t): t for t in (*base.parameters(), *base.buffers())}
    twin = copy.deepcopy(base, shared).eval()
    for module in twin.modules():  # what was compiled or wrapped runs as it is written
        module.__dict__.pop("forward", None)
        module._compiled_call_impl = None
    configs: list[Any] = [module.config for module in twin.modules() if hasattr(module, "config")]
    for config in configs:  # copies too: the user's model keeps its own
        config._attn_implementation = attention
        config.num_hidden_layers = depth
    parent, blocks = find_blocks(twin, blocks_in_all)
    name = next(n for n, child in parent.named_children() if child is blocks)
    setattr(parent, name, nn.ModuleList(list(blocks)[:depth]))
    if not normed:
        for child in after:
            setattr(parent, child, nn.Identity())
    _fuse_activations(twin)
    pack_linears(twin)
    return twin


def _fuse_activations(body: nn.Module) -> None:
    """Put a fused GELU (`gelu.py`) where a module computes the same function in many passes over memory.

    GPT-2's activation is eight elementwise operations in Hugging Face's code: half of the time of a batched pass on a
    CPU. A module is replaced only when it has no tensors and agrees on a grid, whatever its name.
    """
    device = next(body.parameters()).device
    grid = torch.linspace(-12, 12, 4801, device=device)
    wanted = F.gelu(grid, approximate="tanh")
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if (
                isinstance(child, (nn.GELU, nn.Identity))
                or _has_state(child)
                or "activations" not in type(child).__module__
            ):
                continue
            with torch.no_grad():
                same = torch.allclose(child(grid), wanted, rtol=1e-5, atol=1e-6)
            if same:
                setattr(parent, name, Gelu())


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def after_blocks(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What a model does to the output of its last block: the final norm, in most; back from wherever that lies."""
    count = model.config.get_text_config().num_hidden_layers
    parent, _ = find_blocks(body_of(model), count)
    called = [getattr(parent, name) for name in _after_blocks(body_of(model), count)]

    def apply(states: Tensor) -> Tensor:
        device = states.device
        for module in called:
            states = module(states)
        return states.to(device)

    return apply


def final_norm(model: PreTrainedModel, states: Tensor) -> Tensor:
    return after_blocks(model)(states)
