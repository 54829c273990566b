"""Readings of states, and what a capture that calls for each of them hands out: made here, not by the package."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from invert_fast import Inverter, Reading

from .adversary import SMALL
from .families import build

READINGS = {
    "offset": Reading(position_offset=5),
    "centered": Reading(centered=True),
    "scale": Reading(scale=7.3),
    "unit": Reading(scale="unit"),
    "normalised": Reading(centered=True, scale="unit"),
    "prefix": Reading(prefix=(1, 17)),
    "all": Reading(position_offset=3, centered=True, scale=0.5, prefix=(1,)),
}


@functools.cache
def model_of(family: str) -> PreTrainedModel:
    """A small model that tests share and leave as it is."""
    return build(family, **SMALL)


@functools.cache
def reader(family: str, layer: int, name: str) -> Inverter:
    """An inverter that tests share."""
    return Inverter(model_of(family), layer=layer, reading=READINGS[name])


@torch.no_grad()
def handed_out(model: PreTrainedModel, layer: int, reading: Reading, ids: Tensor | Sequence[int]) -> Tensor:
    """States `[..., T, D]` of a `hidden_states` index of texts `ids [..., T]`, by the model's own forward pass."""
    ids = torch.as_tensor(ids)
    batch = ids.reshape(-1, ids.shape[-1])
    before = torch.tensor(reading.prefix, dtype=torch.long).expand(len(batch), -1)
    whole = torch.cat([before, batch], 1)
    positions = reading.position_offset + torch.arange(whole.shape[1]).expand(whole.shape)
    found = model.base_model(input_ids=whole, position_ids=positions, output_hidden_states=True, use_cache=False)
    rows = found.hidden_states[layer][:, len(reading.prefix) :]
    if reading.centered:
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows / rows.norm(dim=-1, keepdim=True) if reading.scale == "unit" else rows * reading.scale
    return rows.reshape(*ids.shape, -1)
