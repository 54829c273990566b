"""Extraction over HTTP: a real llama.cpp server that serves the bundled model, and a server that fails in every way."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest

from invert_fast import InputError
from invert_fast.extract import (
    Client,
    Endpoint,
    Extraction,
    HttpApi,
    LocalApi,
    MalformedError,
    Query,
    RateLimitedError,
    RefusedError,
    Settings,
    TokenNames,
    UnauthorisedError,
    UnavailableError,
    extract,
)
from invert_fast.extract.settings import KEY_VARIABLE

from . import llama_server
from .loopback import Quiet, listening
from .truth import PROMPT

pytest.importorskip("httpx", reason="httpx cannot be imported: pip install -e '.[test]'")
SECRET = "sk-very-secret-0123456789"
SOME = (*range(0, 4096, 64), 4095)  # byte fragments, plain tokens and the one that ends a text


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    reason = llama_server.missing()
    if reason:
        pytest.skip(reason)
    with llama_server.serve(tmp_path_factory.mktemp("llama")) as address:
        yield address


@pytest.fixture(scope="module")
def names(inverter) -> TokenNames:
    return TokenNames.of(inverter.decoder.tokenizer, 4096)


class Top:
    """A real server that gives no more than so many log-probs."""

    def __init__(self, api: HttpApi, top: int):
        self.api, self.top = api, top
        self.name, self.vocab_size, self.names, self.untellable = api.name, api.vocab_size, api.names, api.untellable

    def ask(self, query: Query):
        return self.api.ask(Query(query.prompt, query.bias, min(query.top, self.top)))


@pytest.fixture(scope="module")
def oracle(url) -> Extraction:
    """What the server itself says of all tokens, before any bias: another path than the one extracted through."""
    return extract(Client(HttpApi(Endpoint(url, extra={"post_sampling_probs": False}))), PROMPT, bar=False)


def off(found: Extraction, oracle: Extraction) -> np.ndarray:
    true = oracle.log_probs if found.normalised else oracle.log_probs - oracle.log_probs.max()
    error = np.abs(found.log_probs - true)[found.known]
    assert (error <= found.error[found.known] + oracle.bound).all()
    return error


def test_the_server_computes_what_the_model_does(inverter, oracle):
    """Its GELU goes through a table of fp16: 2e-3 on the worst of 4,096 entries, 4e-4 on average."""
    logits = LocalApi(inverter).logits(PROMPT).astype(np.float64)
    true = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert oracle.complete
    assert np.abs(oracle.log_probs - true).max() < 5e-3
    assert np.abs(oracle.log_probs - true).mean() < 1e-3


def test_the_whole_vector_by_exact_solve(url, oracle):
    found = extract(Client(Top(HttpApi(Endpoint(url)), 64)), PROMPT, bar=False)
    assert (found.method, found.complete, len(found.known)) == ("exact", True, 4096)
    assert off(found, oracle).max() <= 1e-4
    assert found.bound <= 1e-4
    assert found.queries - found.probe_queries <= np.ceil(4095 / 63) + 3


def test_the_argmax_alone_by_simultaneous_bisection(url, names, oracle):
    """Only the text of one token comes back; tokens that are no whole character are told apart all the same."""
    api = Top(HttpApi(Endpoint(url, dialect="openai", extra={"cache_prompt": False}), names), 0)
    found = extract(Client(api), PROMPT, Settings(tokens=SOME), bar=False)
    assert found.method == "simultaneous"
    assert set(SOME) <= set(found.known.tolist())
    assert off(found, oracle).max() <= 1e-3
    assert found.bound <= 1e-3


def test_log_probs_before_bias_by_the_chosen_token(url, names, oracle):
    api = Top(HttpApi(Endpoint(url, dialect="openai", extra={"cache_prompt": False}), names), 5)
    some = tuple(t for t in SOME if t not in names.untellable)
    found = extract(Client(api), PROMPT, Settings(tokens=some), bar=False)
    assert (found.method, found.complete) == ("chosen", True)
    assert off(found, oracle).max() <= 1e-4


def test_chat(url):
    api = HttpApi(Endpoint(url, chat=True, system="Answer briefly."))
    full = extract(Client(api), PROMPT, bar=False)
    some = tuple(range(1024))
    found = extract(Client(Top(api, 128)), PROMPT, Settings(tokens=some), bar=False)
    assert found.method == "exact"
    assert off(found, full).max() <= 1e-4
    other = extract(Client(HttpApi(Endpoint(url, chat=True))), PROMPT, bar=False)
    assert np.abs(other.log_probs - full.log_probs).max() > 0.1  # the system message is part of the prompt


def test_names_of_another_vocabulary_are_noticed(url, names):
    text = [names.text_of(i).encode() for i in range(4096)]
    alike = TokenNames(text[:1000] + text[:999:-1])  # the likely tokens are the same, so the argmax shows nothing
    other = TokenNames(text[1:] + text[:1])
    for wrong, says in ((alike, "tokenizer of the very model"), (other, "another model's tokenizer")):
        api = Top(HttpApi(Endpoint(url, dialect="openai"), wrong), 0)
        with pytest.raises(InputError, match=says):
            extract(Client(api), PROMPT, Settings(tokens=SOME), bar=False)


GOOD = {"choices": [{"text": " a", "finish_reason": "length"}]}


class Script:
    """What a server is to answer: `(status, headers, body)`, or "drop" (hang up) or "cut" (half of the body)."""

    def __init__(self, *steps):
        self.steps, self.seen = list(steps), []


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def do_GET(self):
            self.reply(200, {}, json.dumps({"data": [{"id": "m", "owned_by": "them"}]}).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            script.seen.append((self.headers.get("Authorization"), json.loads(body)))
            step = script.steps.pop(0) if script.steps else (200, {}, json.dumps(GOOD).encode())
            if step == "drop":
                self.close_connection = True
                self.connection.close()
            elif step == "cut":
                whole = json.dumps(GOOD).encode()
                self.reply(200, {}, whole[: len(whole) // 2])
            elif step == "short":
                whole = json.dumps(GOOD).encode()
                self.reply(200, {}, whole[: len(whole) // 2], len(whole))
            else:
                self.reply(*step)

    with listening(Handler) as url:
        yield url


def asked(script: Script, names: TokenNames, waits: list[float]):
    with scripted(script) as url:
        api = HttpApi(Endpoint(url, timeout=10), names)
        client = Client(api, sleep=waits.append)
        try:
            return client, client.ask(Query(PROMPT)).token
        finally:
            api.close()


@pytest.mark.parametrize("failure", ["drop", "cut", "short", (500, {}, b"oops"), (503, {}, b""), (200, {}, b"<html>")])
def test_passing_failures_are_tried_again(names, failure):
    waits: list[float] = []
    client, token = asked(Script(failure, failure), names, waits)
    assert token == names.find(" a")
    assert (client.spent, client.retried, len(waits)) == (3, 2, 2)


@pytest.mark.parametrize("header", ["seconds", "date"])
def test_retry_after_is_obeyed(names, header):
    value = "7" if header == "seconds" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 7))
    waits: list[float] = []
    client, _ = asked(Script((429, {"Retry-After": value}, b"{}")), names, waits)
    assert client.retried == 1
    assert max(waits) == pytest.approx(7, abs=2)


@pytest.mark.parametrize(
    ("step", "error", "says"),
    [
        ((400, {}, b'{"error": "logit_bias beyond 100"}'), RefusedError, "logit_bias beyond 100"),
        ((404, {}, b"no such model"), RefusedError, "404"),
        ((301, {"Location": "http://elsewhere/"}, b""), RefusedError, "redirects"),
        ((401, {}, b"who are you"), UnauthorisedError, KEY_VARIABLE),
        ((200, {}, b'{"choices": []}'), MalformedError, "no `choices`"),
        ((200, {}, b"[1, 2]"), MalformedError, "expected an object"),
        ((200, {}, b'{"choices": [{"txt": 1}]}'), MalformedError, "OpenAI's form"),
    ],
)
def test_lasting_failures_are_told_at_once(names, step, error, says):
    with pytest.raises(error, match=says):
        asked(Script(step), names, [])


def test_a_server_that_is_not_there(names):
    with pytest.raises(UnavailableError, match="connection lost"):
        HttpApi(Endpoint("http://127.0.0.1:9/v1", timeout=5), names)


def test_the_key_is_sent_and_never_shown(names, monkeypatch, caplog, tmp_path):
    """Not in errors that quote it, logs of any library at any level, reprs, or progress files."""
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    caplog.set_level(logging.DEBUG)
    script = Script((401, {}, f"bad key {SECRET}".encode()), (500, {}, f"trace: Bearer {SECRET}".encode()))
    said = []
    with scripted(script) as url:
        api = HttpApi(Endpoint(url), names)
        for _ in range(2):
            with pytest.raises((UnauthorisedError, UnavailableError)) as raised:
                api.ask(Query(PROMPT))
            said += [str(raised.value), repr(raised.value), "[key]" in str(raised.value)]
        api.ask(Query(PROMPT))
        api.close()
    assert {seen[0] for seen in script.seen} == {f"Bearer {SECRET}"}  # it was sent
    shown = [*map(str, said), repr(api), repr(api.endpoint), api.name, caplog.text]
    assert not any(SECRET in text for text in shown)
    assert said[2]
    assert said[5]


@pytest.mark.parametrize("where", ["http://example.com/v1", "https://user:pw@example.com/v1", "ftp://x/v1", "nonsense"])
def test_a_key_goes_nowhere_unsafe(names, monkeypatch, where):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with pytest.raises(InputError, match="unencrypted|password|no http") as raised:  # noqa: RUF043
        HttpApi(Endpoint(where), names)
    assert SECRET not in str(raised.value)


def test_rate_limits_do_not_use_up_the_patience_for_failures(names):
    waits: list[float] = []
    limit = (429, {"Retry-After": "0"}, b"")
    client, token = asked(Script(*[limit] * 20), names, waits)
    assert token == names.find(" a")
    assert client.retried == 20
    with pytest.raises(RateLimitedError, match="gave up"):
        asked(Script(*[limit] * 200), names, waits)
