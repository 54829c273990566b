"""Who is next: every request in turn, only what fits beside what runs, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import torch

from invert_fast.serve.bodies import Texts
from invert_fast.serve.jobs import Job
from invert_fast.serve.metrics import Metrics
from invert_fast.serve.waiting import Kind, Waiting
from invert_fast.serve.worker import Feed


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(steps)


def job(*lengths: int, stored: str = "float32") -> Job:
    return Job(Texts([torch.zeros(n, 4) for n in lengths], [None] * len(lengths), stored, "float32"))


def feed(waiting: Waiting, kind: Kind, lanes: int = 8, tokens: int = 1000) -> Feed:
    return Feed(waiting, kind, lanes, tokens, Metrics())


def test_requests_take_turns_and_longer_texts_of_one_come_first():
    async def steps() -> None:
        waiting = Waiting(64, 1024)
        many, one = job(3, 9, 5), job(4)
        for each in (many, one):
            waiting.put(each)
        assert waiting.texts() == 4
        kind = waiting.first()
        assert kind == Kind("float32", "float32", 64)
        taken = [waiting.take(kind, 64)[0] for _ in range(4)]
        assert [(t.job, t.number) for t in taken if t] == [(many, 1), (one, 0), (many, 2), (many, 0)]
        assert waiting.take(kind, 64) == (None, False)

    run(steps())


def test_lanes_hold_texts_of_one_precision_that_are_not_too_long():
    async def steps() -> None:
        waiting = Waiting(64, 1024)
        short, coarse, long = job(5), job(5, stored="bfloat16"), job(100)
        for each in (short, coarse, long):
            waiting.put(each)
        lanes = feed(waiting, Kind("float32", "float32", 64))
        assert next(lanes)[0] == 0  # the short one
        assert list(lanes) == []  # others wait: what runs is brought to its end
        assert waiting.first() == Kind("bfloat16", "float32", 64)
        lanes = feed(waiting, Kind("bfloat16", "float32", 64))
        assert [index for index, _ in lanes] == [0]
        assert waiting.first() == Kind("float32", "float32", 128)

    run(steps())


def test_short_texts_join_long_lanes_as_long_as_those_are_needed():
    async def steps() -> None:
        waiting = Waiting(64, 1024)
        for each in (job(100), job(5)):
            waiting.put(each)
        lanes = feed(waiting, Kind("float32", "float32", 128))
        first, second = next(lanes), next(lanes)
        assert [len(item[1]) for item in (first, second)] == [100, 5]
        assert next(lanes) is None  # nothing now
        waiting.put(job(6))
        lanes.leave(first[0])
        assert list(lanes) == []

    run(steps())


def test_no_more_tokens_than_may_be_are_in_the_lanes():
    async def steps() -> None:
        waiting = Waiting(64, 1024)
        waiting.put(job(30, 30, 30))
        lanes = feed(waiting, Kind("float32", "float32", 64), tokens=64)
        indices = [next(lanes)[0], next(lanes)[0]]
        assert next(lanes) is None
        lanes.leave(indices[0])
        assert next(lanes)[0] == 2
        waiting.put(job(64))
        for index in (1, 2):
            lanes.leave(index)
        alone = feed(waiting, Kind("float32", "float32", 64), tokens=16)
        assert len(next(alone)[1]) == 64  # more than may be side by side, so by itself

    run(steps())


def test_a_stream_of_one_kind_does_not_keep_another_waiting():
    async def steps() -> None:
        waiting = Waiting(64, 1024)
        waiting.put(job(5))
        lanes = feed(waiting, Kind("float32", "float32", 64), lanes=3)
        next(lanes)
        waiting.put(job(5, stored="bfloat16"))
        given = 0
        for _ in range(20):  # whatever leaves, another comes
            waiting.put(job(5))
            if (item := next(lanes, None)) is None:
                break
            lanes.leave(item[0])
            given += 1
        assert given == 3

    run(steps())


def test_what_is_cancelled_or_closed_is_not_given():
    async def steps() -> None:
        waiting = Waiting(64, 1024)
        gone, stays = job(5, 5), job(6)
        for each in (gone, stays):
            waiting.put(each)
        lanes = feed(waiting, Kind("float32", "float32", 64))
        index, _ = next(lanes)
        assert lanes.wanted(index)
        gone.cancelled = True
        assert not lanes.wanted(index)
        assert not lanes.running
        assert waiting.texts() == 1
        assert len(next(lanes)[1]) == 6
        waiting.put(job(5))
        waiting.close()
        assert not lanes.wanted(1)
        assert list(lanes) == []
        assert waiting.first() is None

    run(steps())


def test_an_answer_that_nobody_can_hear_any_more_is_no_error():
    made: list[Job] = []

    async def steps() -> None:
        made.append(job(5))

    run(steps())
    made[0].tell(None)  # its loop is closed
