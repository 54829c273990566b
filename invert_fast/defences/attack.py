"""What is left of a defence once it is attacked: how many tokens come back, and how many are certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..types import Recovery, States, Status
from .base import Defence


class Inverts(Protocol):
    """As much of an `Inverter` as is used here, which stands above."""

    def invert(self, states: list[States], strategy: str = "auto", **options) -> list[Recovery]: ...


@dataclass(frozen=True)
class Attacked:
    """tokens: whose rows were given away; recovered: share of them that was found; certified: share that was certified;
    wrong: how many were certified and are others."""

    tokens: int
    recovered: float
    certified: float
    wrong: int
    found: list[Recovery]


def attacked(
    inverter: Inverts,
    defence: Defence,
    ids: Sequence[Sequence[int] | None],
    batch: Sequence[States],
    seed: int = 0,
    strategy: str = "auto",
) -> Attacked:
    """Invert states of texts `ids` (None for one that is not known, and left out) as they are given away, told nothing
    of the defence, and count what is right.

    Tokens are compared one by one with those whose rows were given away.
    """
    given, truth = [], []
    for index, (text, states) in enumerate(zip(ids, batch, strict=True)):
        if text is not None:
            given.append(defence.apply(states, seed + index))
            truth.append([text[place] for place in defence.kept(len(states), seed + index)])
    return counted(inverter.invert(given, strategy), truth)


def counted(found: Sequence[Recovery], truth: Sequence[Sequence[int]]) -> Attacked:
    """What was found against what stood there."""
    right = [recovery.token_ids == np.array(text, dtype=int) for recovery, text in zip(found, truth, strict=True)]
    sure = [recovery.status == Status.CERTIFIED for recovery in found]
    tokens = sum(map(len, truth))
    share = max(1, tokens)
    return Attacked(
        tokens,
        sum(int(r.sum()) for r in right) / share,
        sum(int(s.sum()) for s in sure) / share,
        sum(int((s & ~r).sum()) for s, r in zip(sure, right, strict=True)),
        [*found],
    )
