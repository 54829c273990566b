"""Lanes that go on from the prefixes of other lanes: what a search with several hypotheses of one text needs."""

from __future__ import annotations

import torch
from torch import Tensor

from .lanes import Lanes
from .transfer import picked, sent, sent_one


def branch(lanes: Lanes, to: Tensor, of: Tensor) -> None:
    """Lanes `to [n]`, each once, get the committed tokens of lanes `of [n]`, and what is kept of them: copies, so that
    all may go on in ways of their own. A lane may be in both."""
    moved = to != of
    to, of = to[moved], of[moved]
    if not len(to):
        return
    longest, (there, source) = int(lanes.length[of].max()), sent(lanes.device, to, of)
    for tables in (lanes.keys, lanes.values):
        for table in tables or ():
            part = table[:, :, :longest]
            part[there] = part[source]  # read in full before it is written
    lanes.ids[to] = lanes.ids[of]
    lanes.length[to] = lanes.length[of]


def begin(lanes: Lanes, slots: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
    """Lanes `slots [b]` start with the first `counts [b]` of `ids [b, K]`: the state of the last of these `[b, D]`
    (zeros of none)."""
    lanes.length[slots] = 0
    rows = torch.arange(len(slots))
    if not ids.shape[1]:
        return torch.zeros(len(slots), lanes.decoder.width, device=lanes.device)
    hidden = lanes.draft(slots, ids)
    lanes.commit(slots, ids, counts, rows)
    last = picked(hidden, rows, (counts - 1).clamp_min(0)).float()
    return last.masked_fill(sent_one(lanes.device, counts == 0)[:, None], 0.0)
