"""Texts that come and go while others are worked on: what is said of the rest does not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from invert_fast import Inverter, Recovery, States
from invert_fast.engine.engine import Engine
from invert_fast.engine.memory import plan
from invert_fast.engine.read import run_as_read
from invert_fast.model.reading import Reading

from ..families import build, exact, make, texts
from ..strategies.settings import STRATEGIES, strategies

LONGEST = 24


@pytest.fixture(scope="module")
def inv() -> Inverter:
    return Inverter(build("llama"))


def run(
    inv: Inverter, strategy, source, wanted: Callable[[int], bool] | None = None, slots: int = 2
) -> Iterator[tuple[int, Recovery]]:
    tokens = plan(inv.decoder, LONGEST, None, slots).tokens_per_call
    engine = Engine(inv.decoder, inv.vocabulary, inv.calibrate(), strategy, slots, LONGEST, tokens)
    return run_as_read(inv.decoder, source, lambda given: engine.run(given, wanted))


def test_texts_that_come_later_join_those_that_are_there(inv):
    truth = texts(20, 3, 0, 7, 24)
    states = [s.hidden for s in inv.capture(truth)]
    asked = []

    def source():
        for index, rows in enumerate(states):
            asked.append(index)
            yield index, rows
            yield None
            yield None

    found = run(inv, STRATEGIES["auto"], source(), slots=4)
    first, _ = next(found)
    assert len(asked) < len(states), "the first text waited for those behind it"
    recovered = {first: None} | dict(found)
    assert sorted(recovered) == [*range(len(truth))]
    whole = dict(run(inv, STRATEGIES["auto"], source(), slots=4))
    assert exact([whole[i] for i in range(len(truth))], truth)


@strategies
def test_a_text_that_is_given_up_leaves_nothing_behind_in_its_lane(inv, strategy):
    truth = texts(12, 6, 6, 5, seed=3)
    states = [s.hidden for s in inv.capture(truth)]
    generator = torch.Generator().manual_seed(0)
    lost = torch.randn(LONGEST, inv.decoder.width, generator=generator)  # no text at all: keeps a lane busy for long
    rounds = iter(range(1000))

    def wanted(index: int) -> bool:
        return index != 0 or next(rounds) < 6

    given = enumerate([lost, *states])
    found = dict(run(inv, STRATEGIES[strategy], given, wanted, slots=1))
    assert sorted(found) == [1, 2, 3, 4]
    alone = inv.invert([States(rows) for rows in states], STRATEGIES[strategy])
    for index, recovery in enumerate(alone, 1):
        assert found[index].token_ids.tolist() == recovery.token_ids.tolist()
        assert found[index].status.tolist() == recovery.status.tolist()
        assert found[index].alternatives == recovery.alternatives


def test_nothing_comes_of_what_nobody_wants_and_the_run_ends():
    inv = Inverter(make("gpt2"))
    states = [s.hidden for s in inv.capture(texts(9, 4))]
    assert list(run(inv, STRATEGIES["auto"], enumerate(states), lambda _: False)) == []


def test_texts_that_come_later_are_read_as_the_others_are():
    truth = texts(6, 4)
    inv = Inverter(make("llama"), reading=Reading(scale=2.0, prefix=(1,)))
    whole = Inverter(make("llama")).capture([[1, *ids] for ids in truth])
    rows = [2 * s.hidden[1:] for s in whole]

    def source():
        yield 0, rows[0]
        yield None
        yield 1, rows[1]

    found = dict(run(inv, STRATEGIES["auto"], source()))
    assert exact([found[0], found[1]], truth)
