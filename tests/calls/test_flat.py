"""A process that calls for days holds no more than one that has called a few times."""

from __future__ import annotations

import gc
import itertools
import sys

import pytest
import torch

from invert_fast import Exhaustive, InputError, Inverter
from invert_fast.model import replay

from ..families import Tokenizer, build, texts

TEXTS = texts(3, 9, 1)
WARM_UP, WINDOWS, CALLS = 12, 3, 10  # what is kept of every call is there in every window
A_CALL = 30  # blocks: what a call gives are hundreds; a few are of libraries


def test_memory_is_flat(monkeypatch):
    monkeypatch.setattr(replay, "WARM_UP", 4)  # calls of a kind until it is recorded, which is kept
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
    found = [held()]
    for _ in range(WINDOWS):
        for _ in range(CALLS):
            work()
        found.append(held())
    grown = [(later[0] - sooner[0], later[1] - sooner[1]) for sooner, later in itertools.pairwise(found)]
    assert min(tensors for tensors, _ in grown) <= 0, f"tensors and blocks more each time: {grown}"
    assert min(blocks for _, blocks in grown) < A_CALL * CALLS, f"tensors and blocks more each time: {grown}"
