"""A real HTTP server that lies, trickles or never ends: found out and named, in bounded time, size and requests."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest

from invert_fast import InputError
from invert_fast.extract import (
    Answer,
    ApiError,
    Client,
    Endpoint,
    HttpApi,
    MalformedError,
    Patience,
    Query,
    RateLimitedError,
    Settings,
    UnavailableError,
    extract,
    probe,
)

from .lying import LOGITS, Body, RawError, V, changed, client_of, honest, log_probs, served

pytest.importorskip("httpx", reason="httpx cannot be imported: pip install -e '.[test]'")


def test_an_honest_server_is_extracted_from():
    with served(lambda body: honest(body, top=5)) as url:
        found = extract(client_of(url), "x", bar=False)
    assert found.complete
    np.testing.assert_allclose(found.log_probs, log_probs(LOGITS), atol=found.bound)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda body: honest(body, top=5, bias=0.0, shown=0.0), "takes a logit bias and does not apply it"),
        (lambda body: honest(body, top=5), f"takes a request for {V} log-probs and gives 5"),
        (lambda body: honest(body, top=5, shown=0.0), "5 log-probs a call before bias"),
    ],
    ids=["no bias", "fewer than asked for", "log-probs that a bias does not move"],
)
def test_the_probe_finds_out_what_is_accepted_and_not_done(lie, says):
    with served(lie) as url:
        assert says in probe(client_of(url), "x").describe()


def at(name: str, value: Any) -> Callable[[Body], Body]:
    """One field of the first entry of the list is something else."""
    return lambda body: changed(body, lambda row: row["top_logprobs"][0].__setitem__(name, value))


def raw(write: Callable[[BaseHTTPRequestHandler], object]) -> Callable[[Body], Body]:
    def answer(body: Body) -> Body:
        raise RawError(write)

    return answer


def nested(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 10**6)


LIES = {
    "a log-prob above 0": (at("logprob", 7.5), "0 or less"),
    "an infinite log-prob": (at("logprob", float("inf")), "0 or less"),
    "NaN": (at("logprob", float("nan")), "no numbers"),
    "a number beyond all numbers": (at("logprob", 10**400), "OpenAI's form"),
    "an id beyond the vocabulary": (at("id", V), "outside the vocabulary"),
    "a negative id": (at("id", -3), "outside the vocabulary"),
    "an id beyond 64 bits": (at("id", 1 << 80), "outside the vocabulary"),
    "a token twice": (at("id", 1), "twice"),
    "bytes that are a number": (
        lambda body: changed(body, lambda row: row.update(id=None, bytes=10**12)), "OpenAI's form"),
    "probabilities that sum to forty": (
        lambda body: changed(body, lambda row: [e.update(logprob=-0.001) for e in row["top_logprobs"]]), "sum to"),
    "brackets in brackets": (lambda body: raw(nested)(body), "nested too deeply"),
    "no object": (lambda body: [1, 2], "expected an object"),
    "a list that is none": (lambda body: changed(body, lambda row: row.update(top_logprobs=7)), "OpenAI's form"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
def test_what_no_distribution_gives_is_refused(kind, time_limit):
    lie, says = LIES[kind]
    with served(lie) as url, time_limit(10), pytest.raises(ApiError, match=says):
        client_of(url, patience=Patience(retries=1)).ask(Query("x", top=V))


@pytest.mark.parametrize(
    "models",
    [
        {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_vocab": 1 << 40}}]},
        {"data": [{"id": "m", "meta": [1]}]},
        {"data": [1, "two", None]},
        {"data": {"id": "m"}},
        {"data": 7},
    ],
)
def test_a_list_of_models_that_is_none(models):
    with served(honest, models) as url, pytest.raises(InputError, match="vocabulary"):
        HttpApi(Endpoint(url, timeout=10))


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """A byte of the headers now and then: no timeout of a socket ends that."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
    for _ in range(300):
        handler.wfile.write(b"a")
        time.sleep(0.1)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    for _ in range(300):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b" " * (1 << 16))


def bomb(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(1 << 20)))


@pytest.mark.parametrize(
    ("write", "error", "says"),
    [
        (trickle, UnavailableError, "did not answer within"),
        (drip, UnavailableError, "did not answer within"),
        (endless, MalformedError, "more than 1,089,536 bytes"),
        (bomb, MalformedError, "packed"),
    ],
    ids=["headers that trickle", "a body that drips", "a body that never ends", "a bomb"],
)
def test_an_answer_is_bounded_in_time_and_size(write, error, says):
    start = time.monotonic()
    with served(raw(write)) as url, pytest.raises(error, match=says):
        client_of(url, 0.5 if write in (trickle, drip) else 30.0, patience=Patience(retries=0)).ask(Query("x", top=V))
    assert time.monotonic() - start < 20, "seconds of a machine that may be busy"


def test_a_limit_on_the_rate_that_never_ends_does():
    waits: list[float] = []
    limited = raw(lambda h: h.wfile.write(b"HTTP/1.0 429 Slow down\r\nRetry-After: 500\r\n\r\n"))
    with served(limited) as url, pytest.raises(RateLimitedError, match="gave up"):
        client_of(url, sleep=waits.append, patience=Patience(retries=2, longest_in_all=2000.0)).ask(Query("x"))
    assert sum(waits) < 7 * 500
    for date in ("nan", "Tue, 99 Xxx 9999 99:99:99 GMT", "Sun, 01 Jan 99999 00:00:00 GMT", "-5", "\u0664"):
        header = f"Retry-After: {date}".encode("latin-1", "replace")
        once = raw(lambda h, header=header: h.wfile.write(b"HTTP/1.0 429 Slow down\r\n" + header + b"\r\n\r\n"))
        with served(once) as url, pytest.raises(RateLimitedError):
            HttpApi(Endpoint(url, timeout=10)).ask(Query("x"))


class Direct:
    """The same lies without a server between: these are many questions."""

    name, vocab_size, names, untellable = "liar", V, "ids", frozenset()

    def __init__(self, lie: Callable[[Body], Body]):
        self.lie = lie

    def ask(self, query: Query) -> Answer:
        body = {"logit_bias": dict(query.bias), "logprobs": query.top}
        (row,) = self.lie(body)["choices"][0]["logprobs"]["content"]
        ids, values = ([entry[name] for entry in row["top_logprobs"]] for name in ("id", "logprob"))
        told = row["logprob"] if query.top else float("nan")
        return Answer(row["id"], np.array(ids, np.int64), np.array(values, np.float64), told)


RANDOM = np.random.default_rng(1)


def anyone(body: Body) -> Body:
    raised = [int(token) for token in body["logit_bias"]] or [0]
    return honest(body, top=0, chosen=int(RANDOM.choice(raised)))


def certain(body: Body) -> Body:
    return changed(body, lambda row: row.update(top_logprobs=[{"id": row["id"], "logprob": -1e-9}]))


def at_random(body: Body) -> Body:
    return changed(body, lambda row: [e.update(logprob=float(RANDOM.uniform(-9, -4))) for e in row["top_logprobs"]])


LIARS = {
    "the reference wins always": lambda body: honest(body, top=0, chosen=0),
    "anyone wins": anyone,
    "near certainty whatever the bias": certain,
    "log-probs at random": at_random,
}


@pytest.mark.parametrize("method", ["auto", "exact", "chosen", "one-of-k", "simultaneous", "bisection"])
@pytest.mark.parametrize("kind", LIARS)
def test_an_extraction_from_a_liar_ends(kind, method, time_limit):
    """With an error, or with what it could not find named as such: never complete and wrong in silence."""
    found, client = None, Client(Direct(LIARS[kind]), budget=100_000, sleep=lambda _: None)
    with time_limit(30), suppress(InputError):
        found = extract(client, "x", Settings(method, precision=0.01), bar=False)
    if found is not None:
        wrong = np.abs(found.log_probs - log_probs(LOGITS))[found.known] > found.error[found.known] + 1e-6
        assert not (found.complete and wrong.any())
    assert client.spent < 100 * V, "what is asked is bounded, without a budget"
