"""Threads, forked processes, and readers that stop in the middle: each gets what it would have got alone."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from invert_fast import Exhaustive, InputError, Inverter, Recovery, States
from invert_fast.calls.turns import Turns, turns_of
from invert_fast.model.lanes import Lanes
from invert_fast.strategies.speculative import _Proposer

from ..families import Tokenizer, build, exact, texts

TEXTS = texts(5, 1, 12, 3, 9, 2)
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds after which something waits for ever


@pytest.fixture(scope="module")
def inverter() -> Inverter:
    made = Inverter(build("llama"), Tokenizer(300))
    made.invert(made.capture(TEXTS))  # what is fitted and measured once is there
    return made


@pytest.fixture(scope="module")
def states(inverter) -> list[States]:
    return inverter.capture(TEXTS)


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What calls give that begin together, each in a thread of its own; raises what one of them did."""
    found: list[object] = [None] * len(calls)
    begin = threading.Barrier(len(calls))

    def work(number: int) -> None:
        try:
            begin.wait(PATIENCE)
            found[number] = calls[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread waits for ever"
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found


def told(found: list[Recovery]) -> list[object]:
    return [(r.token_ids.tolist(), r.status.tolist(), r.residual.tolist(), r.cost.forward_tokens) for r in found]


def test_threads_get_what_each_would_get_alone(inverter, states):
    calls = [
        lambda: told(inverter.invert(states)),
        lambda: told(inverter.invert(states[::-1], Exhaustive())),
        lambda: [s.hidden.tolist() for s in inverter.capture(TEXTS)],
        lambda: told([r for _, r in inverter.invert_iter(enumerate(states), lengths=[*map(len, states)])]),
    ]
    alone = [call() for call in calls]
    assert at_once(*calls) == alone


def test_inverters_of_one_model_share_its_turns(inverter):
    """The model is the caller's, and is asked for its states by its own modules."""
    other = Inverter(inverter.decoder.model, layer=1)
    assert other._turns is inverter._turns
    captured = other.capture(TEXTS)
    calls = [lambda: told(other.invert(captured, Exhaustive())), lambda: told(inverter.invert(inverter.capture(TEXTS)))]
    alone = [call() for call in calls]
    assert at_once(*calls) == alone


def test_a_reader_that_stops_keeps_nobody_waiting(inverter, states):
    reader = inverter.invert_iter(enumerate(states), lengths=[*map(len, states)], batch_size=1)
    first = next(reader)
    (found,) = at_once(lambda: inverter.invert(states))
    assert exact(found, TEXTS)
    assert exact([r for _, r in sorted([first, *reader], key=lambda pair: pair[0])], TEXTS)


def test_texts_may_come_from_a_thread_that_needs_the_model(inverter):
    """A queue between who captures and who inverts: each waits for the other by turns."""
    between: queue.Queue = queue.Queue(maxsize=1)

    def capturing() -> None:
        for index, ids in enumerate(TEXTS):
            between.put((index, *inverter.capture([ids])), timeout=PATIENCE)

    def inverting() -> list[Recovery]:
        given = (between.get(timeout=PATIENCE) for _ in TEXTS)
        found = dict(inverter.invert_iter(given, lengths=[*map(len, TEXTS)], batch_size=1))
        return [found[index] for index in range(len(TEXTS))]

    _, found = at_once(capturing, inverting)
    assert exact(found, TEXTS)


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_reader_that_is_let_go_of_frees_what_it_held(inverter, states, how, monkeypatch):
    held, ended = [], []
    init, end = Lanes.__init__, _Proposer.ended
    monkeypatch.setattr(Lanes, "__init__", lambda self, *a: (init(self, *a), held.append(weakref.ref(self)))[0])
    monkeypatch.setattr(_Proposer, "ended", lambda self: (end(self), ended.append(torch.is_grad_enabled())))
    reader = inverter.invert_iter(enumerate(states), lengths=[*map(len, states)], batch_size=2)
    next(reader)
    assert any(lanes() is not None for lanes in held)
    with torch.no_grad():
        if how == "closed":
            reader.close()
        del reader
        gc.collect()
    assert not any(lanes() is not None for lanes in held)
    assert ended == [True], "put away once, under the usual settings"
    assert inverter._turns._depth == 0


def test_who_lets_go_in_the_turn_of_another_does_not_wait_for_it(inverter, states):
    """Garbage is collected in any thread, at any moment: it may wait for nobody."""
    reader = inverter.invert_iter(enumerate(states), lengths=[*map(len, states)], batch_size=2)
    next(reader)
    inside, over = threading.Event(), threading.Event()

    def long_turn() -> None:
        with inverter._turns:
            inside.set()
            assert over.wait(PATIENCE), "whoever let go waited for us"

    def letting_go() -> None:
        inside.wait(PATIENCE)
        reader.close()
        over.set()

    at_once(long_turn, letting_go)
    assert not inverter._turns._left, "whose turn it was has put it away"
    with pytest.raises(StopIteration):
        next(reader)


def test_ctrl_c_while_waiting_for_another_breaks_nothing(inverter, states, monkeypatch):
    """While the caller was asked for texts, another thread has come in."""
    turns, inside, over = inverter._turns, threading.Event(), threading.Event()

    def given():
        yield 0, states[0]
        thread.start()
        inside.wait(PATIENCE)
        enter = Turns.__enter__

        def interrupted(self):
            monkeypatch.setattr(Turns, "__enter__", enter)
            raise KeyboardInterrupt  # as in acquiring the lock

        monkeypatch.setattr(Turns, "__enter__", interrupted)
        yield 1, states[1]

    def long_turn() -> None:
        with turns:
            inside.set()
            over.wait(PATIENCE)

    thread = threading.Thread(target=long_turn)
    with pytest.raises(KeyboardInterrupt):
        list(inverter.invert_iter(given(), lengths=[*map(len, states)], batch_size=1))
    over.set()
    thread.join(PATIENCE)
    assert (turns._depth, turns._lock.acquire(blocking=False)) == (0, True)
    turns._lock.release()
    assert exact(inverter.invert(states), TEXTS)


def test_turns_do_not_keep_a_model():
    model = build("gpt2")
    turns, gone = turns_of(model), weakref.ref(model)
    with turns:
        pass
    del model, turns
    gc.collect()
    assert gone() is None


def in_a_child(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does this work; it is killed where it hangs."""
    child = os.fork()
    if not child:
        signal.alarm(round(PATIENCE))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FORK = """
import os, sys, threading, torch
from tests.calls.test_turns import TEXTS, in_a_child
from tests.families import Tokenizer, build, exact
from invert_fast import Inverter

inverter = Inverter(build("llama"), Tokenizer(300))
states = inverter.capture(TEXTS)
assert exact(inverter.invert(states), TEXTS)
torch.set_num_threads(2)
inverter.capture(TEXTS)
torch.ones(512, 512) @ torch.ones(512, 512)  # by now the second thread is there

def work():
    assert exact(inverter.invert(inverter.capture(TEXTS)), TEXTS)
    assert torch.get_num_threads() == 2

assert in_a_child(work) == 0, "while nobody was at work"
reader = inverter.invert_iter(enumerate(states), lengths=[*map(len, states)], batch_size=1)
next(reader)
inside, over = threading.Event(), threading.Event()

def long_turn():
    with inverter._turns:
        inside.set()
        over.wait()

thread = threading.Thread(target=long_turn)
thread.start()
inside.wait()
assert in_a_child(work) == 0, "in another thread's turn"
torch.set_num_threads(1)
over.set()
thread.join()
assert len(list(reader)) == len(TEXTS) - 1
print("well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_alone():
    """It has one thread, whatever the parent had; what other threads were in the midst of is over."""
    command = [sys.executable, "-c", FORK]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


def test_a_forked_child_is_told_that_cuda_does_not_come_along(monkeypatch):
    inverter = Inverter(build("gpt2"))
    monkeypatch.setattr(inverter._turns, "_cuda", True)
    monkeypatch.setattr(inverter._turns, "_process", os.getpid() - 1)
    for _ in range(2):
        with pytest.raises(InputError, match="spawn"):
            inverter.capture(TEXTS)


def test_what_comes_out_can_be_pickled_and_copied(inverter, states):
    found = inverter.invert(states)
    for again in (lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy):
        one = again(found[0])
        for name in ("token_ids", "residual", "discrete_loss", "margin", "status", "rank", "steps", "error_bound"):
            np.testing.assert_array_equal(getattr(one, name), getattr(found[0], name))
        assert (one.text, one.certified, one.cost, one.precision) == (
            *(found[0].text, found[0].certified, found[0].cost, found[0].precision),
        )
        for given in (states[0], States(torch.ones(2, 3, dtype=torch.int8), scale=torch.ones(2))):
            made = again(given)
            assert torch.equal(made.hidden, given.hidden)
            assert (made.layer, made.dtype, made.compute_dtype, made.model) == (
                *(given.layer, given.dtype, given.compute_dtype, given.model),
            )
        score = inverter.score(found, TEXTS)
        assert again(score) == score


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_inverter_is_not_copied_and_says_what_to_do(inverter, how):
    with pytest.raises(TypeError, match="from_pretrained"):
        how(inverter)
