"""The states of all first tokens: no text stands before them, so they are known once and for all."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..model.decoder import Decoder

_AT_ONCE = 2048
_kept: WeakKeyDictionary[Decoder, Tensor] = WeakKeyDictionary()  # once a process


@torch.no_grad()
def openings_of(decoder: Decoder) -> Tensor:
    """`[V, D]` fp32, of a vocabulary that is not too large for it."""
    if decoder not in _kept:
        ids = torch.arange(decoder.vocab_size, device=decoder.device)[:, None]
        _kept[decoder] = torch.cat([decoder.states(part)[:, 0].float() for part in ids.split(_AT_ONCE)])
    return _kept[decoder]
