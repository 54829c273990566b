"""Extracted log-probs on disk, in the layout of every logits file: safetensors without any text.

`values [N, n]` float32 (one row a prompt), `offsets [P+1]` int64 (prompt i has rows offsets[i]:offsets[i+1]; none where
nothing was extracted), `ids` int64 unless rows are full: `[n]` where all rows share them, else `[N, n]`; and
`error [N, n]`, the stated bound. Metadata: `format`, `kind` (log_probs, or logits where the normaliser is not known),
`dtype`, `compute_dtype`, `api`, and `model` where it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..storage.atomic import write_whole
from .extraction import Extraction

FORMAT = "invert_fast-logits-1"


def write(path: Path, found: Sequence[Extraction | None], api: str, model: str | None = None) -> None:
    """Write all prompts at once, through a temporary file, so that a kill leaves no half-written one.

    Where prompts differ in what is known, each row keeps as many tokens as the poorest row has, its most likely ones.
    """
    rows = [each for each in found if each is not None and len(each.known)]
    lengths = [int(each is not None and len(each.known) > 0) for each in found]
    tensors: dict[str, np.ndarray] = {"offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)}
    size = len(rows[0].log_probs) if rows else 0
    known = [each.known for each in rows]
    if all(len(ids) == size for ids in known):
        picked = known
    elif all(np.array_equal(ids, known[0]) for ids in known):
        picked, tensors["ids"] = known, known[0].astype(np.int64)
    else:
        count = min(map(len, known))
        picked = [
            np.sort(ids[np.argsort(-each.log_probs[ids], kind="stable")[:count]])
            for ids, each in zip(known, rows, strict=True)
        ]
        tensors["ids"] = np.stack(picked).astype(np.int64)
    width = len(picked[0]) if rows else 0
    for name, values in (
        ("values", [each.log_probs[ids] for each, ids in zip(rows, picked, strict=True)]),
        ("error", [each.error[ids] for each, ids in zip(rows, picked, strict=True)]),
    ):
        tensors[name] = np.array(values, np.float32).reshape(len(rows), width)
    normalised = all(each.normalised for each in rows)
    metadata = {
        "format": FORMAT,
        "kind": "log_probs" if normalised else "logits",
        "dtype": "float32",
        "compute_dtype": "float32",
        "api": api,
        **({"model": model} if model else {}),
    }
    write_whole(path, save(tensors, metadata))
