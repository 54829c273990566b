"""Attention masks: which rows of a padded batch are a text's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import InputError

_KINDS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def spans(mask: Tensor) -> list[tuple[int, int]]:
    """First row and the one after the last of each text, of a mask `[B, T]` of ones (a token) and zeros (padding).

    Padding may be on either side; (0, 0) where all is padding. Raises InputError for other numbers, and for a text with
    padding inside.
    """
    numbers = mask.dtype in _KINDS
    kept = mask != 0 if numbers else mask
    if mask.dim() != 2 or not numbers or not bool(((mask == 1) | ~kept).all()):
        raise InputError(
            f"the attention mask is {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
            f"{'' if mask.dim() != 2 or not numbers else ' with numbers other than 0 and 1'}, expected [texts, rows] "
            "of ones and zeros: give the one that the tokenizer made"
        )
    if not kept.shape[1]:
        return [(0, 0)] * len(kept)
    counts = kept.sum(1)
    starts = torch.where(counts > 0, kept.int().argmax(1), 0)
    places = torch.arange(kept.shape[1], device=kept.device)
    run = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
    if bool((run != kept).any()):
        row = int((run != kept).any(1).int().argmax())
        raise InputError(
            f"the attention mask of text {row} has zeros between ones, expected padding at its ends alone: states are "
            "inverted from the first token on, so none may be left out"
        )
    return [(int(start), int(start + count)) for start, count in zip(starts, counts, strict=True)]
