"""What people capture, and hand on as states of the bundled model's last layer; by the model's own forward pass."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from invert_fast import Inverter

TEXT = (
    "The committee will meet again on Tuesday to discuss the budget for the new library, and the mayor has said she "
    "expects a vote."
)
BEFORE = "Before that there were other words here, and they are missing now. "
TOKENS, BOS = 24, 4095


@functools.cache
def bundled() -> Inverter:
    return Inverter.from_pretrained("bundled", device="cpu")


@functools.cache
def ids() -> list[int]:
    return bundled().encode(TEXT)[:TOKENS]


@functools.cache
def _sibling(noise: float):
    model, generator = copy.deepcopy(bundled().decoder.model), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
    return model


def _last(before: tuple[int, ...] = (), offset: int = 0, model=None) -> Tensor:
    return _everywhere(before, offset, model)[-1][len(before) :]


@torch.no_grad()
def _everywhere(before: tuple[int, ...] = (), offset: int = 0, model=None) -> list[Tensor]:
    whole = torch.tensor([[*before, *ids()]])
    body = (model or bundled().decoder.model).base_model
    positions = offset + torch.arange(whole.shape[1])[None]
    return [h[0] for h in body(whole, position_ids=positions, output_hidden_states=True).hidden_states]


@torch.no_grad()
def _pre_norm() -> Tensor:
    kept = []
    body = bundled().decoder.model.base_model
    handle = body.h[-1].register_forward_hook(
        lambda _module, _args, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    body(torch.tensor([ids()]))
    handle.remove()
    return kept[0].reshape(len(ids()), -1)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _without_gain() -> Tensor:
    norm = bundled().decoder.model.base_model.ln_f
    return (_last() - norm.bias) / norm.weight


# Name, rows, and the option that `diagnose` names: "" where they certify as they are, None where nothing explains them.
CAPTURES = {
    "as `invert` expects them": (_last, ""),
    "before the final norm (a serving engine)": (_pre_norm, "--layer block:3"),
    "one layer early (an index off by one)": (lambda: _everywhere()[-2], "--layer block:2"),
    "after the first block": (lambda: _everywhere()[1], "--layer block:0"),
    "left-padded by 7, no position ids": (lambda: _last(offset=7), "--position-offset 7"),
    "left-padded by 300": (lambda: _last(offset=300), "--position-offset 300"),
    "a BOS before the text, its row dropped": (lambda: _last((BOS,)), f"--prefix {BOS}"),
    "residual stream centred (TransformerLens)": (lambda: _centered(_pre_norm()), "--layer block:3 --centered"),
    "centred, in the middle": (lambda: _centered(_everywhere()[2]), "--layer block:1 --centered"),
    "the final norm without its gain": (_without_gain, "--layer block:3 --centered --scale unit"),
    "times √D": (lambda: 16 * _last(), "--scale 16"),
    "times 0.0731": (lambda: 0.0731 * _last(), "--scale 0.0731000006"),
    "rows of unit length": (lambda: _unit(_last()), "--scale unit"),
    "rows of unit length, in the middle": (lambda: _unit(_everywhere()[2]), "--layer block:1 --scale unit"),
    "weights off by 1 % (a quantisation)": (
        lambda: _last(model=_sibling(0.01)),
        "--states-dtype float32 --compute-dtype int8",
    ),
    "weights off by 5 % (a fine-tuned sibling)": (lambda: _last(model=_sibling(0.05)), None),
    "rows missing in front": (lambda: _last(tuple(bundled().encode(BEFORE))), None),
    "the mean over the text": (lambda: _last().mean(0)[None], None),
    "the last token's row": (lambda: _last()[-1:], None),
    "the mean, repeated": (lambda: _last().mean(0).repeat(9, 1), None),
}
