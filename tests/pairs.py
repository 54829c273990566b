"""Fewer than all combinations of three parameters: every pair of values of any two of them occurs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def pairwise(first: Sequence, second: Sequence, third: Sequence) -> list[tuple]:
    """All pairs of the first two, values of the third by turns. Lengths are checked: turns may miss a pair."""
    made = [(a, b, third[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)]
    for i, j in itertools.combinations(range(3), 2):
        every = set(itertools.product(*((first, second, third)[k] for k in (i, j))))
        missing = every - {(row[i], row[j]) for row in made}
        assert not missing, f"no combination has {missing}: give the parameters in another order"
    return made


def all_but_pairwise_on_every_processor(first: Sequence, second: Sequence, third: Sequence) -> list[Any]:
    """All combinations; those that are not pairwise run once, not on every instruction set."""
    kept = set(pairwise(first, second, third))
    rows = itertools.product(first, second, third)
    return [row if row in kept else pytest.param(*row, marks=pytest.mark.slow) for row in rows]
