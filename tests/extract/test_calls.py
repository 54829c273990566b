"""Calls that fail, that must wait, that are counted, and that a kill must not cost."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest

from invert_fast import InputError
from invert_fast.extract import (
    Answer,
    ApiError,
    Client,
    LocalApi,
    Patience,
    Progress,
    Query,
    RateLimitedError,
    Restrictions,
    Settings,
    UnavailableError,
    extract,
)

from .truth import EVERY_16TH, PROMPT, check, truth


def test_rate_limits_are_waited_for(inverter):
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    client = Client(LocalApi(inverter, Restrictions(top=100, per_second=200)), sleep=sleep, parallel=3)
    found = extract(client, PROMPT, bar=False)
    assert found.complete
    assert client.retried > 0
    assert 0 < max(waits) < 1  # the API's own word, not the back-off
    assert client.spent == client.answered + client.retried


class Failing:
    """Fails the first `failures` questions of each kind of error."""

    name, vocab_size, names, untellable = "failing", 16, "ids", frozenset()

    def __init__(self, failures: int, error: ApiError):
        self.failures, self.error = failures, error

    def ask(self, query: Query) -> Answer:
        if self.failures:
            self.failures -= 1
            raise self.error
        return Answer(3)


def test_retries_back_off_and_end():
    waits: list[float] = []
    client = Client(Failing(3, UnavailableError("gone")), sleep=waits.append)
    assert client.ask(Query("x")).token == 3
    assert [round(w) for w in np.log2(np.array(waits) / 0.5)] == [0, 1, 2]  # doubled each time, within the jitter
    assert (client.spent, client.answered, client.retried) == (4, 1, 3)
    client = Client(Failing(99, UnavailableError("gone")), sleep=waits.append, patience=Patience(retries=2))
    with pytest.raises(UnavailableError, match="gave up after 3 tries"):
        client.ask(Query("x"))
    client = Client(Failing(1, RateLimitedError("slow", 7.5)), sleep=waits.append)
    client.ask(Query("x"))
    assert waits[-1] == pytest.approx(7.5, abs=0.1)
    client = Client(Failing(1, RateLimitedError("slow", 1e5)), sleep=waits.append)
    with pytest.raises(ApiError, match="go on later"):
        client.ask(Query("x"))


def test_a_budget_ends_the_work_and_the_progress_file_goes_on(inverter, tmp_path):
    rules, path = Restrictions(top=3), tmp_path / "progress.jsonl"

    def run(budget):
        api = LocalApi(inverter, rules)
        client, progress = Client(api, budget=budget), Progress(path, api.name, api.vocab_size)
        try:
            return client, extract(client, PROMPT, progress=progress, bar=False)
        finally:
            progress.close()

    client, first = run(1000)
    assert client.spent == 1000
    assert not first.complete
    assert "budget of 1000" in (first.stopped or "")
    check(first, truth(inverter), len(first.known))
    assert PROMPT not in path.read_text()
    with path.open("a") as file:
        file.write('{"prompt": 0, "ids": [1, 2')  # what a kill leaves
    client, second = run(None)
    assert second.complete
    assert check(second, truth(inverter), 4096) < 1e-4
    assert second.queries == 1000 + client.spent  # probing is not repeated, and both runs are counted
    assert client.spent + 1000 <= 4096 / 2 + second.probe_queries + 300  # at most one round was asked twice
    api = LocalApi(inverter, rules)
    progress = Progress(path, api.name, api.vocab_size)
    with pytest.raises(InputError, match="not the one"):
        extract(Client(api), "Another prompt", progress=progress, bar=False)
    progress.close()
    with pytest.raises(InputError, match="belongs to"):
        Progress(path, "another api", 4096)
    path.write_text("no json\n")
    with pytest.raises(InputError, match="line 1"):
        Progress(path, api.name, api.vocab_size)


def test_kill_nine_costs_no_answer(inverter, tmp_path):
    path = tmp_path / "progress.jsonl"
    api = LocalApi(inverter, Restrictions(top=0))
    api.logits(PROMPT)  # before the fork: the child then computes with NumPy alone
    child = os.fork()
    if child == 0:
        try:
            progress = Progress(path, api.name, api.vocab_size)
            extract(Client(api), PROMPT, Settings(tokens=EVERY_16TH), progress=progress, bar=False)
        finally:
            os._exit(1)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (path.exists() and path.read_bytes().count(b"\n") > 100):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[1:-1]]
    asked = rows[-1]["spent"]
    progress = Progress(path, api.name, api.vocab_size)
    client = Client(api)
    found = extract(client, PROMPT, Settings(tokens=EVERY_16TH), progress=progress, bar=False)
    progress.close()
    assert check(found, truth(inverter), 257) < 1e-3
    alone = extract(Client(api), PROMPT, Settings(tokens=EVERY_16TH), bar=False)
    assert client.spent < alone.queries - 0.5 * (asked - alone.probe_queries)  # what was answered need not be asked
