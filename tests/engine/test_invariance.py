"""Neither the number of lanes nor the texts beside it change what is said of a text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invert_fast import Inverter, Recovery, States

from ..families import build, embedding_table, texts
from ..strategies.settings import STRATEGIES, strategies


def same(a: list[Recovery], b: list[Recovery]) -> None:
    """Equal in all that a user relies on. Ranks may differ: they follow from the order of drafting."""
    for one, other in zip(a, b, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.status.tolist() == other.status.tolist()
        assert one.alternatives == other.alternatives
        assert one.text == other.text
        np.testing.assert_allclose(one.residual, other.residual, rtol=1e-3, atol=1e-5)


def noisy_batch(inv: Inverter) -> list[States]:
    """Texts of every fate: clean, with noise, in half precision's rounding, and of no text at all."""
    truth, generator = (
        texts(5, 1, 0, 9, 3, 8, 2, 17, 1, 4, 0, 6),
        torch.Generator().manual_seed(0),
    )
    states = inv.capture(truth)
    for i, sigma in ((3, 3e-3), (5, 0.05), (7, 1.0), (9, 100.0)):
        hidden = states[i].hidden
        noise = torch.randn(hidden.shape, generator=generator) * hidden.square().mean().sqrt()
        states[i] = States(hidden + sigma * noise, states[i].layer)
    return states


@pytest.fixture(scope="module")
def batch() -> tuple[Inverter, list[States]]:
    model = build("qwen3")
    embedding_table(model)[20:40] = embedding_table(model)[40:60]  # some tokens cannot be told apart
    inv = Inverter(model)
    return inv, noisy_batch(inv)


@strategies
def test_the_number_of_lanes_does_not_change_the_result(batch, strategy):
    inv, states = batch
    alone, *others = (inv.invert(states, STRATEGIES[strategy], batch_size=size) for size in (1, 3, 7, None))
    assert {int(s) for r in alone for s in r.status} >= {0, 2, 3, 4}
    for other in others:
        same(alone, other)


@strategies
def test_a_text_does_not_care_which_texts_are_beside_it(batch, strategy):
    inv, states = batch
    together = inv.invert(states, STRATEGIES[strategy])
    same(together, [inv.invert(s, STRATEGIES[strategy])[0] for s in states])
    same(together, inv.invert(states[::-1], STRATEGIES[strategy])[::-1])


def test_twice_the_same_is_the_same(batch):
    inv, states = batch
    one, other = inv.invert(states, batch_size=3), inv.invert(states, batch_size=3)
    same(one, other)
    assert [(r.rank.tolist(), r.cost.forward_tokens) for r in one] == [
        (r.rank.tolist(), r.cost.forward_tokens) for r in other
    ]


def test_the_number_of_threads_does_not_change_the_result(batch):
    inv, states = batch
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(inv.invert(states))
    finally:
        torch.set_num_threads(before)
    same(*found)
