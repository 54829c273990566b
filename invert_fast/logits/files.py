"""Files of recorded log-probs: safetensors, and nothing of the prompt in it.

Tensors: `values [N, n]` (all positions of all texts, float32, float16 or bfloat16), `offsets [P+1]` int64 (text i has
rows offsets[i]:offsets[i+1]) and, unless rows are full, `ids` int64: `[n]` where all rows share them, `[N, n]` where
each has its own. Metadata: `format`, `kind` (log_probs | logits), `dtype`, `compute_dtype`, `model`. A single [T, V]
tensor in safetensors or .npy is taken as one text of full rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ..storage import states
from ..storage.states import StatesFile
from ..storage.tensors import write_tensors
from ..types import InputError
from .recorded import KINDS, Logits

FORMAT = "invert_fast-logits-1"


@dataclass(frozen=True)
class LogitsFile:
    """A logits file on disk; rows are read when asked for. ids: shared by all rows, else None; own_ids: each has its
    own; kind: None where the file does not say."""

    rows: StatesFile
    ids: Tensor | None
    own_ids: bool
    kind: str | None

    def __len__(self) -> int:
        return len(self.rows)

    def logits(self, index: int, kind: str | None = None, dtype: str | None = None, computed: str | None = None):
        """Text `index` as `Logits`; what is given here counts more than what the file says."""
        start, stop = self.rows.spans[index]
        ids = self.ids
        if self.own_ids:
            with safe_open(self.rows.path, framework="pt") as file:
                ids = file.get_slice("ids")[start:stop]
        return Logits(
            self.rows.rows(start, stop),
            ids,
            kind or self.kind or "auto",
            dtype or self.rows.dtype,
            computed or self.rows.compute_dtype or "float32",
            self.rows.model,
        )


def open_logits(path: Path) -> LogitsFile:
    """Look into a file of log-probs; InputError for whatever else it is."""
    rows = states.open_states(path, usual="values")
    if rows.kind != "safetensors":
        return LogitsFile(rows, None, False, None)
    with safe_open(path, framework="pt") as file:
        meta, names = file.metadata() or {}, set(file.keys())
        shape = file.get_slice("ids").get_shape() if "ids" in names else None
        kind = meta.get("kind")
        if rows.array.name == "hidden" or meta.get("format") == states.FORMAT:
            raise InputError(f"{path} holds hidden states, expected log-probs or logits: use `invert-fast invert`")
        if kind is not None and kind not in KINDS:
            raise InputError(f"{path}: kind '{kind}' is unknown, expected one of {', '.join(KINDS)}")
        if shape is None:
            return LogitsFile(rows, None, False, kind)
        if shape not in ([rows.width], [rows.array.shape[0], rows.width]):
            raise InputError(
                f"{path}: `ids` has shape {shape}, expected [{rows.width}] (shared) or "
                f"[{rows.array.shape[0]}, {rows.width}] (a row each)"
            )
        return LogitsFile(rows, file.get_tensor("ids") if len(shape) == 1 else None, len(shape) == 2, kind)


def write_logits(
    path: Path,
    parts: Iterable[tuple[Tensor, Tensor | None]],
    lengths: Sequence[int],
    entries: int,
    dtype: torch.dtype,
    metadata: dict[str, str],
    ids: Tensor | None = None,
) -> None:
    """Write a logits file text by text. parts: values `[T_i, n]` and, where rows have ids of their own, those; ids:
    `[n]` where all share them."""
    total = sum(lengths)
    fixed = {"offsets": np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")}
    streams = {"values": (dtype, [total, entries])}
    if ids is not None:
        fixed["ids"] = ids.cpu().numpy().astype("<i8")
    elif metadata.get("entries", "").startswith("top"):
        streams["ids"] = (torch.int64, [total, entries])
    rows = ({"values": v, **({} if i is None else {"ids": i})} for v, i in parts)
    write_tensors(path, fixed, streams, rows, {**metadata, "format": FORMAT})
