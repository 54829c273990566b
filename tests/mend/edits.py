"""Texts of small models and of the bundled one, what is done to their rows, and the judge of what comes back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invert_fast import Inverter, Recovery, Status
from invert_fast.model.samples import prose_ids

from ..adversary import SMALL
from ..families import build

LENGTH = 12


@functools.cache
def small(family: str, layer: int) -> Inverter:
    """An inverter that tests share."""
    return Inverter(build(family, **SMALL), layer=layer)


@functools.cache
def bundled(layer: str = "final_norm") -> Inverter:
    return Inverter.from_pretrained("bundled", layer, device="cpu")


def prose(inverter: Inverter, start: int, length: int = 33) -> list[int]:
    """Ids of text that the package ships."""
    return prose_ids(inverter.decoder)[start : start + length]


def rows_of(inverter: Inverter, ids: Sequence[int]) -> Tensor:
    return inverter.decoder.capture(torch.tensor([list(ids)]))[0].float()


@dataclass(frozen=True)
class Edited:
    """rows `[R, D]`, and the token that stood at each."""

    rows: Tensor
    truth: list[int]


Rows, Ids = Tensor, list[int]
Edit = Callable[[Rows, Ids, Rows, Ids, torch.Generator], Edited]


def _pick(rows: Rows, ids: Ids, which: Sequence[int]) -> Edited:
    return Edited(rows[list(which)], [ids[i] for i in which])


def _both(a: Rows, x: Ids, b: Rows, y: Ids, which: Sequence[int]) -> Edited:
    return _pick(torch.cat([a, b]), [*x, *y], which)


def _vectors(rows: Rows, generator: torch.Generator, count: int) -> Tensor:
    return torch.randn(count, rows.shape[1], generator=generator) * rows.norm(dim=-1).median() / rows.shape[1] ** 0.5


def _with(rows: Rows, ids: Ids, at: int, row: Tensor) -> Edited:
    rows = rows.clone()
    rows[at] = row
    return Edited(rows, ids)


T = LENGTH
EDITS: dict[str, Edit] = {
    "nothing": lambda a, x, b, y, g: Edited(a, x),
    "one row dropped": lambda a, x, b, y, g: _pick(a, x, [*range(5), *range(6, T)]),
    "two rows dropped": lambda a, x, b, y, g: _pick(a, x, [*range(5), *range(7, T)]),
    "the last but one dropped": lambda a, x, b, y, g: _pick(a, x, [*range(T - 2), T - 1]),
    "the first dropped": lambda a, x, b, y, g: _pick(a, x, range(1, T)),
    "one row twice": lambda a, x, b, y, g: _pick(a, x, [*range(6), *range(5, T)]),
    "two rows swapped": lambda a, x, b, y, g: _pick(a, x, [0, 1, 2, 4, 3, *range(5, T)]),
    "shuffled": lambda a, x, b, y, g: _pick(a, x, torch.randperm(T, generator=g).tolist()),
    "shuffled, one dropped": lambda a, x, b, y, g: _pick(a, x, torch.randperm(T, generator=g).tolist()[1:]),
    "one row of another text": lambda a, x, b, y, g: Edited(_with(a, x, 5, b[5]).rows, [*x[:5], y[5], *x[6:]]),
    "noise on one row": lambda a, x, b, y, g: _with(a, x, 5, a[5] + 0.3 * _vectors(a, g, 1)[0]),
    "two texts in turns": lambda a, x, b, y, g: _both(a, x, b, y, [i for t in range(T) for i in (t, T + t)]),
    "two texts in a row": lambda a, x, b, y, g: _both(a, x, b, y, range(2 * T)),
    "two texts shuffled": lambda a, x, b, y, g: _both(a, x, b, y, torch.randperm(2 * T, generator=g).tolist()),
    "one vector on all rows": lambda a, x, b, y, g: Edited(a + _vectors(a, g, 1), x),
    "one vector on half of them": lambda a, x, b, y, g: Edited(torch.cat([a[:4], a[4:] + _vectors(a, g, 1)]), x),
    "a vector on each row": lambda a, x, b, y, g: Edited(a + 0.3 * _vectors(a, g, len(a)), x),
    "rows of another length": lambda a, x, b, y, g: Edited(1.02 * a, x),
}


def edited(name: str, inverter: Inverter, seed: int = 0) -> Edited:
    """An edit of a random text of a small model."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(3, inverter.decoder.vocab_size, (2, LENGTH), generator=generator).tolist()
    return EDITS[name](rows_of(inverter, x), x, rows_of(inverter, y), y, generator)


def judge(found: Sequence[Recovery], truth: Sequence[int], filled: Sequence[int] = ()) -> int:
    """How many certified tokens there are; each is the one that stood at its row. filled: what stood where there was
    no row, in order."""
    sure, rest = 0, list(filled)
    for one in found:
        assert one.mended is not None
        assert len(one.mended.rows) == len(one.token_ids) == len(one.status)
        assert one.mended.sentence
        assert one.error_bound is not None
        assert ((one.error_bound <= 1e-9) == (one.status == Status.CERTIFIED)).all()
        for t in range(len(one.token_ids)):
            row = one.mended.rows[t]
            right = truth[row] if row >= 0 else rest.pop(0) if rest else None
            if one.status[t] == Status.CERTIFIED:
                assert one.token_ids[t] == right, f"position {t}: certified {one.token_ids[t]}, the truth is {right}"
                sure += 1
    return sure


def certified(found: Recovery) -> list[int]:
    """Its certified tokens."""
    return found.token_ids[np.flatnonzero(found.status == Status.CERTIFIED)].tolist()
