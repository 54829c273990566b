"""Families of models on the pretended GPU, as `python -m tests.pretend families` runs all of them (ten minutes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from invert_fast import Inverter, PriorOrder, Recovery

from .. import zoo
from ..small_fits import shrink

IDS = [[1, 5, 7, 9, 20], [1, 9]]
FEW = ("gemma3_text", "qwen2", "qwen3_moe")  # windows, biases, experts


def scenes(device: str, families: Sequence[str] = zoo.FAMILIES) -> Iterator[tuple[str, Callable[[], list[Recovery]]]]:
    """Captured and inverted, by the lens and without one."""
    shrink(pytest.MonkeyPatch())
    for family in families:
        inverter = Inverter(zoo.build(family).to(device))
        states = inverter.capture(IDS)
        prior = PriorOrder(first_block=64)
        yield f"family {family}", lambda inv=inverter, s=states, p=prior: inv.invert(s) + inv.invert(s, p)
