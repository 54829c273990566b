"""Drafts and fan-outs of different lanes in one pass: a large model is mostly read, whatever goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .lanes import Lanes
from .prefix import JointCall, Passed
from .transfer import sent_one


class Asked(NamedTuple):
    """What is asked of lanes `slots [b]`: tokens `ids [b, K]`, in a row (causal) or each alone, as which part of the
    cost."""

    slots: Tensor
    ids: Tensor
    causal: bool
    part: str


@torch.no_grad()
def joint_pass(lanes: Lanes, asked: Sequence[Asked]) -> list[Passed]:
    """One pass for all of these; no lane may be in two of them. Where `Decoder.joins`; `Lanes.resume` takes each up."""
    calls = [(lanes.call(one.slots, one.causal), len(one.ids), one.ids.shape[1]) for one in asked]
    embeds = lanes.embedded(torch.cat([one.ids.flatten() for one in asked])[None])
    places = sent_one(lanes.device, torch.cat([_places(lanes, one).flatten() for one in asked]))
    hidden = lanes.decoder.run(embeds, places[None], JointCall(calls))[0]
    found = []
    for (call, B, K), one, rows in zip(calls, asked, hidden.split([B * K for _, B, K in calls]), strict=True):
        lanes.part = one.part
        lanes.charge(one.slots, forward=K)
        found.append(Passed(rows.unflatten(0, (B, K)), call))
    return found


def _places(lanes: Lanes, one: Asked) -> Tensor:
    """Positions `[b, K]`; padding may overhang."""
    step = torch.arange(one.ids.shape[1]) * int(one.causal)
    return (lanes.length[one.slots][:, None] + step).clamp_max(lanes.decoder.max_length - 1)
