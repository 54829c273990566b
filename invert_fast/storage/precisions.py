"""Precisions that states are stored in: how rows are rounded to them, and how rows that were are recognised.

    fp8    h ≈ s·q with q an e4m3 or e5m2 number; s = 1, or the least power of two at which a row does not overflow
    int8   h ≈ s·q with q in −127 … 127 and s = max |h| / 127 of the row

A row has its own scale s, which lies beside the codes q. Rows rounded once stay as they are when rounded again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import QUANTISED, InputError, States, dtype_named

FP8 = {"fp8_e5m2": torch.float8_e5m2, "fp8_e4m3": torch.float8_e4m3fn}
CODES = {**FP8, "int8": torch.int8}
LEVELS = 127
_FLOATS = ("float64", "float32", "bfloat16", "float16")
_UNSAID = "bfloat16"  # what is taken for the precision of the pass behind quantised states: nobody computes in those
_OFF = 4e-7  # of a row's largest number: how far from its level a product of two fp32 numbers may come to lie


def stored_dtype(precision: str) -> torch.dtype:
    """`"int8"` → `torch.int8`: what numbers (or their codes) of that precision are held in. InputError for others."""
    if precision in CODES:
        return CODES[precision]
    try:
        return dtype_named(precision)
    except InputError as error:
        raise InputError(f"{error}, or of what is stored {', '.join(CODES)}") from error


def codes_of(rows: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Codes `[..., D]` and scales `[...]` fp32 of rows `[..., D]` in one of the quantised precisions."""
    rows = rows.float()
    largest = rows.abs().amax(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[:-1])
    if precision in FP8:
        over = (largest / torch.finfo(FP8[precision]).max).clamp_min(1.0)
        scale = torch.exp2(torch.ceil(torch.log2(over)))
        return (rows / scale[..., None]).to(FP8[precision]), scale
    scale = (largest / LEVELS).masked_fill(largest == 0, 1.0)
    return (rows / scale[..., None]).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def rows_of(codes: Tensor, scale: Tensor | None) -> Tensor:
    """The rows in fp32 that codes `[..., D]` stand for, with their scales `[...]`, `[..., 1]`, one for all, or none."""
    rows = codes.float()
    if scale is None:
        return rows
    scale = scale.float()
    return rows * (scale if scale.numel() == 1 or scale.dim() == rows.dim() else scale[..., None])


def rounded(rows: Tensor, precision: str) -> Tensor:
    """Rows `[..., D]` as they come back from storage: in that precision, quantised ones in fp32."""
    return rows_of(*codes_of(rows, precision)) if precision in QUANTISED else rows.to(stored_dtype(precision))


def precisions_of(states: Sequence[States]) -> list[tuple[str, str]]:
    """What each of some texts was stored and computed in: as it says, unless its numbers say otherwise.

    fp32 values that all are bf16 (or fp16, fp8, int8) ones were stored in that, whatever holds them now, and were
    computed in it where nobody said anything else; quantised ones in bf16, the coarsest of what passes run in.
    """
    found = [(s.dtype, s.compute_dtype) for s in states]
    asked = [i for i, s in enumerate(states) if s.dtype in _FLOATS and s.hidden.numel()]
    groups: dict[tuple, list[int]] = {}
    for i in asked:
        hidden = states[i].hidden
        groups.setdefault((hidden.shape[1], hidden.dtype, hidden.device), []).append(i)
    for group in groups.values():
        first = torch.stack([states[i].hidden.detach()[0] for i in group])
        halves = bool(_are(first, "bfloat16").any())  # what is in fp8 can be bf16, too
        for name in _coarser_than(first.dtype) if halves else _coarser_than(first.dtype)[len(FP8) :]:
            may = _are(first, name)  # the first row mostly tells already
            for i in [i for i, is_one in zip(group, may.tolist(), strict=True) if is_one]:
                said, rows = states[i], states[i].hidden.detach()
                if found[i][0] == said.dtype and bool(_are(rows, name).all()) and bool(rows.any()):
                    unsaid = _UNSAID if name in QUANTISED else name
                    found[i] = name, unsaid if said.compute_dtype == said.dtype else said.compute_dtype
    return found


def _coarser_than(dtype: torch.dtype) -> tuple[str, ...]:
    """What numbers of a type may be, the coarsest first."""
    more = ("bfloat16", "float16", "int8") if dtype in (torch.float32, torch.float64) else ()
    return (*FP8, *more)


def _are(rows: Tensor, name: str) -> Tensor:
    """`[n]` bool: which rows are of that precision; rows of zeros are of any."""
    if name != "int8":
        return (rounded(rows, name).to(rows.dtype) == rows).all(-1)
    return (rounded(rows, name) - rows.float()).abs().amax(-1) <= _OFF * rows.float().abs().amax(-1)
