"""Rows of ids → their states, where those of equal length share a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..types import States


def captured(decoder: Decoder, ids: Sequence[Sequence[int]], dtype: torch.dtype, batch_size: int) -> Iterator[Tensor]:
    """States `[T_i, D]` of each row of ids, in order, on the CPU. Rows of equal length share a pass, so none is
    padded."""
    for start in range(0, len(ids), batch_size):
        part = ids[start : start + batch_size]
        rows: dict[int, Tensor] = {}
        for length in {len(row) for row in part}:
            which = [i for i, row in enumerate(part) if len(row) == length]
            hidden = (
                torch.empty(len(which), 0, decoder.width)
                if not length
                else decoder.capture(torch.tensor([list(part[i]) for i in which], device=decoder.device)).to(
                    "cpu", dtype
                )
            )
            rows.update(zip(which, hidden, strict=True))
        yield from (rows[i].to(dtype) for i in range(len(part)))


def labelled(decoder: Decoder, hidden: Tensor, stored: str) -> States:
    """Rows of one text, rounded to what they are stored in, with what is known of where they are from."""
    computed = str(decoder.dtype).removeprefix("torch.")
    return States(hidden, decoder.layer.name, stored, computed, decoder.fingerprint())
