"""A process that calls for days holds no more than one that has called a few times."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from invert_fast import Exhaustive, InputError, Inverter

from ..families import Tokenizer, build, texts

TEXTS = texts(3, 9, 1)
WARM_UP, CALLS = 90, 50  # passes are recorded after 64 of a kind


def test_memory_is_flat():
    inverter = Inverter(build("gpt2"), Tokenizer(300))

    def work() -> None:
        states = inverter.capture(TEXTS)
        inverter.score(inverter.invert(states), TEXTS)
        inverter.invert(states[2], Exhaustive())
        reader = inverter.invert_iter(enumerate(states), lengths=[3, 9, 1], batch_size=1)
        next(reader)
        del reader
        with pytest.raises(InputError):
            inverter.invert(torch.full((2, 64), float("nan")))

    def held() -> tuple[int, int]:
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects()), sys.getallocatedblocks()

    for _ in range(WARM_UP):
        work()
    tensors, blocks = held()
    for _ in range(CALLS):
        work()
    more_tensors, more_blocks = held()
    assert more_tensors == tensors
    assert more_blocks - blocks < CALLS, "something is kept of every call"
