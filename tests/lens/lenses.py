"""Lenses of the tests' models, and states to read with them."""

from __future__ import annotations

import torch

from invert_fast import Inverter
from invert_fast.lens import LinearLens, store

from ..families import texts


def lens_of(inv: Inverter, seed: int = 0) -> LinearLens:
    return store.linear_lens(inv.decoder, inv.vocabulary, seed)


def captured(inv: Inverter, *lengths: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor(texts(*lengths, seed=seed))
    return ids, inv.decoder.capture(ids)
