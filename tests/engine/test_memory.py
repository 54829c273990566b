"""A pass never computes more tokens than allowed, and running out of memory costs time and no text."""

from __future__ import annotations

import logging

import pytest
import torch

from invert_fast import Chain, Exhaustive, Inverter, Recovery, Speculative, States
from invert_fast.engine.engine import Engine, _Stream
from invert_fast.model.lanes import Lanes

from ..families import VOCAB, WIDTH, exact, inverter, texts
from ..memory import memory_limit, needs_limits
from ..strategies.settings import MIXED, STRATEGIES, strategies


def engine(inv: Inverter, strategy, tokens_per_call: int, slots: int = 4, max_len: int = 33) -> Engine:
    return Engine(inv.decoder, inv.vocabulary, inv.calibrate(), strategy, slots, max_len, tokens_per_call)


def run(engine: Engine, states: list[States]) -> list[Recovery]:
    found = dict(engine.run(enumerate(s.hidden for s in states)))
    return [found[i] for i in range(len(states))]


def inv_strategy(name: str):
    return Chain(Speculative(), Exhaustive()) if name == "auto" else STRATEGIES[name]


@strategies
@pytest.mark.parametrize("tokens_per_call", [7, 64])
def test_a_forward_pass_never_computes_more_tokens_than_allowed(strategy, tokens_per_call, monkeypatch):
    truth, inv, sizes = texts(5, 1, 0, 12, 2), inverter("llama"), []
    states, work = inv.capture(truth), engine(inv, inv_strategy(strategy), tokens_per_call)
    inv.invert(states[:1], STRATEGIES[strategy])  # fits the lens
    fan_out, draft = Lanes.fan_out, Lanes.draft
    monkeypatch.setattr(Lanes, "fan_out", lambda self, s, i: (sizes.append(i.numel()), fan_out(self, s, i))[1])
    monkeypatch.setattr(Lanes, "draft", lambda self, s, i: (sizes.append(i.numel()), draft(self, s, i))[1])
    assert exact(run(work, states), truth)
    assert max(sizes) <= tokens_per_call


@strategies
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_running_out_of_memory_halves_the_work_and_says_so(strategy, error, monkeypatch, caplog):
    truth, inv, most = texts(*MIXED), inverter("mistral"), 40
    states = inv.capture(truth)
    inv.invert(states[:1], STRATEGIES[strategy])
    forward = Lanes._forward

    def limited(self, slots, embeds, *asked):
        if embeds.shape[:2].numel() > most and self.max_len == 33:
            raise error
        return forward(self, slots, embeds, *asked)

    work = engine(inv, inv_strategy(strategy), 1000)
    monkeypatch.setattr(Lanes, "_forward", limited)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        stream = _Stream(work, enumerate(s.hidden for s in states))
        found = dict(stream.recoveries())
    assert exact([found[i] for i in range(len(states))], truth)
    assert "out of memory" in caplog.text
    assert stream.tokens_per_call <= most
    assert work.tokens_per_call == 1000, "another run of the same engine begins anew"


@needs_limits
def test_at_a_limit_of_the_system_work_is_halved_too(caplog):
    """The real error, whatever PyTorch says of it. One pass over all candidates of all lanes takes tensors of 39 MB and
    more: from 32 MB on, glibc asks the system for each, whatever the tests before this one left free in the heap."""
    truth, inv, lanes = texts(*[2] * 512), inverter("llama"), 512
    states = inv.capture(truth)
    assert lanes * VOCAB * WIDTH * torch.float32.itemsize > 32 << 20
    work = engine(inv, Exhaustive(block=VOCAB), lanes * VOCAB, slots=lanes, max_len=2)
    run(engine(inv, Exhaustive(), 64), states[:2])  # what is made once is there
    with memory_limit(96 << 20), caplog.at_level(logging.WARNING, "invert_fast"):
        found = run(work, states)
    assert exact(found, truth)
    assert "out of memory: going on with" in caplog.text


def test_running_out_of_memory_for_the_prefix_storage_loses_nothing(monkeypatch, caplog):
    truth, inv = texts(*MIXED), inverter("llama")
    states = inv.capture(truth)
    inv.invert(states[:1])
    storage, failures = Lanes._storage, [1]

    def once(self, call, part):
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return storage(self, call, part)

    work = engine(inv, inv_strategy("auto"), 1000)
    monkeypatch.setattr(Lanes, "_storage", once)
    assert exact(run(work, states), truth)
    assert not failures
    assert "out of memory" in caplog.text


def test_errors_that_are_not_about_memory_are_raised(monkeypatch):
    inv = inverter("llama")
    states = inv.capture(texts(3))

    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Lanes, "fan_out", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        inv.invert(states, Exhaustive())


def test_the_plan_keeps_within_max_memory():
    truth, inv = texts(*MIXED), inverter("llama")
    states = inv.capture(truth)
    assert exact(inv.invert(states, max_memory=1e-4), truth)
    assert VOCAB < 1000
