"""What is refused, with which status, and that the answer says what was got, what was wanted and what to do."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from pathlib import Path

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from invert_fast.cli.demo import sentences
from invert_fast.serve import Client, Limits, ServeError
from invert_fast.serve.bodies import Asked, texts_in
from invert_fast.serve.client import packed
from invert_fast.serve.problems import KINDS, ProblemError
from invert_fast.types import InputError

from .conftest import TYPE, metric, nonsense, until

TOKEN = "a-token-of-more-than-sixteen"


def problem(answer: httpx.Response, kind: str) -> str:
    """The detail of an answer that is a problem of this kind."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told = answer.json()
    assert (answer.status_code, told["type"]) == (KINDS[kind], f"urn:invert-fast:{kind}"), told
    assert told.keys() == {"type", "title", "status", "detail"}
    assert told["status"] == answer.status_code
    assert answer.headers["x-request-id"]
    for leak in (str(Path(__file__).parents[2]), "Traceback", ".py", "--tensor", "layer='"):
        assert leak not in told["detail"]
    return told["detail"]


def post(server, body, query: str = "", **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/invert{query}", content=body, headers={**TYPE, **headers}, timeout=60)


def raw(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(kind: str, shape: list[int], size: int = 0) -> bytes:
    return raw({"hidden": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}, bytes(size))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "0 bytes"),
        (b"nonsense", "a header of"),
        (struct.pack("<Q", 1 << 60) + b"{}", "a header of 1,152,921,504,606,846,976"),
        (struct.pack("<Q", 2 << 20) + b" " * (2 << 20), "more than 1,048,576"),
        (raw({"a": {"dtype": "F32", "shape": [2, 1 << 62], "data_offsets": [0, 0]}}), "overflow"),
        (raw({"a": {"dtype": "F32", "shape": [1, 256], "data_offsets": [0, 1024]}}), "cut short"),
        (raw({"__metadata__": {"layer": 5}}), "invalid type"),
        (save({"hidden": torch.zeros(2, 256)})[:-1], "cut short"),
    ],
)
def test_what_is_no_safetensors(inverter, body, says):
    with pytest.raises(ProblemError, match=says) as caught:
        texts_in(body, inverter, Asked(), 64)
    assert caught.value.kind == "not-tensors"
    assert ", expected " in caught.value.detail


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (save({"hidden": torch.zeros(2, 255)}), "255 wide, this model's final_norm states are 256"),
        (save({"hidden": torch.full((3, 256), torch.inf)}), "row 0 has NaN or Inf"),
        (save({"hidden": torch.zeros(3, 256, dtype=torch.int32)}), "int32"),
        (save({"hidden": torch.zeros(256)}), "expected floats of shape"),
        (save({"hidden": torch.zeros(1025, 256)}), "1025 rows, this model has 1024 positions"),
        (save({"a": torch.zeros(2, 256), "b": torch.zeros(2, 2, 256)}), r"name it with \?tensor="),
        (save({"hidden": torch.zeros(2, 256), "offsets": torch.tensor([0, 3])}), "run from 0 to 3"),
        (save({"hidden": torch.zeros(2, 256), "offsets": torch.tensor([0, 2], dtype=torch.int32)}), "int64"),
        (save({"hidden": torch.zeros(0, 256), "offsets": torch.zeros(66, dtype=torch.long)}), "65 texts, expected 64"),
        (save({"h": torch.zeros(2, 2, 256), "attention_mask": torch.tensor([[1, 0], [2, 1]])}), "other than 0 and 1"),
        (tensor("F32", [1 << 40, 0, 256]), "1,099,511,627,776 texts"),
        (tensor("F32", [1 << 40, 0]), "no numbers in it"),
        (tensor("F8_E8M0", [1, 4], 4), "F8_E8M0"),
        (save({"hidden": torch.zeros(2, 256)}, {"layer": "block:1"}), "a server that was started with --layer"),
        (save({"hidden": torch.zeros(2, 256)}, {"layer": "x" * 5000}), "layer 'xxxx"),
        (save({"hidden": torch.zeros(2, 256)}, {"model": "gpt2:0000000000000000"}), "this model is gpt2:"),
        (save({"hidden": torch.zeros(2, 256)}, {"dtype": "float8"}), "dtype 'float8', expected one of float32"),
        (save({"hidden": torch.zeros(2, 256)}, {"compute_dtype": "int4"}), "compute_dtype 'int4', expected one of"),
        (save({f"t{i}": torch.zeros(1, 256) for i in range(65)}), "65 texts, expected 64"),
        (save({"hidden": torch.ones(2, 256)}, {"noise": "gaussian:0.1:absolute"}), "expected it over the root mean"),
    ],
)
def test_what_cannot_be_states_of_this_model(inverter, body, says):
    with pytest.raises(ProblemError, match=says) as caught:
        texts_in(body, inverter, Asked(), 64)
    assert caught.value.kind == "wrong-states"
    assert len(caught.value.detail) <= 600


def test_states_of_another_model_are_taken_where_that_is_insisted_on(inverter):
    body = save({"hidden": torch.zeros(2, 256)}, {"model": "gpt2:0000000000000000", "layer": "block:1"})
    assert [len(rows) for rows in texts_in(body, inverter, Asked(insist=True), 64).rows] == [2]


@given(data=st.data())
def test_no_body_makes_it_stumble(inverter, data):
    """Bytes, headers of all kinds and cuts of good ones end in texts or in a problem, never in anything else."""
    names = st.sampled_from(["hidden", "offsets", "attention_mask", "text_1", "é", ""])
    about = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I64", "BOOL", "F4", "X"]),
            "shape": st.lists(st.sampled_from([0, 1, 2, 256, 1 << 33, -1]), max_size=4),
            "data_offsets": st.tuples(st.sampled_from([0, 8]), st.sampled_from([0, 8, 1024, 2048])),
        }
    )
    headers = st.dictionaries(names, about, max_size=3)
    good = save({"hidden": torch.ones(2, 256), "offsets": torch.tensor([0, 1, 2])}, {"dtype": "float32"})
    body = data.draw(
        st.one_of(
            st.binary(max_size=64),
            st.builds(raw, headers, st.sampled_from([b"", bytes(8), bytes(1024), bytes(2048)])),
            st.integers(0, len(good)).map(lambda size: good[:size]),
        )
    )
    asked = Asked(data.draw(st.sampled_from([None, "hidden", "text_*", "*", "[", ""])))
    with contextlib.suppress(ProblemError):
        assert all(rows.shape[1] == 256 for rows in texts_in(body, inverter, asked, 64).rows)


def test_what_the_server_does_not_take(server):
    body = save({"hidden": torch.zeros(2, 256)})
    assert "application/octet-stream" in problem(
        post(server, body, **{"content-type": "text/plain"}), "wrong-media-type"
    )
    assert "gzip" in problem(post(server, body, **{"content-encoding": "gzip"}), "wrong-media-type")
    assert "cut short" in problem(post(server, b"nonsense"), "not-tensors")
    assert "noise 'loud' is unknown, expected" in problem(
        post(server, save({"hidden": torch.ones(2, 256)}), "?noise=loud"), "wrong-parameter"
    )
    assert "255 wide" in problem(post(server, save({"hidden": torch.zeros(2, 255)})), "wrong-states")
    assert "insist is 'maybe'" in problem(post(server, body, "?insist=maybe"), "wrong-parameter")
    assert "states_dtype is 'int4'" in problem(post(server, body, "?states_dtype=int4"), "wrong-parameter")
    assert "/v1/invert" in problem(httpx.get(f"{server.url}/v2/invert"), "not-found")
    refused = httpx.get(f"{server.url}/v1/invert")
    assert "/v1/invert" in problem(refused, "method-not-allowed")
    assert refused.headers["allow"] == "POST"
    told = problem(httpx.get(f"{server.url}/v1/model", headers={"host": "attacker.example"}), "wrong-host")
    assert "attacker.example" in told
    assert httpx.get(f"{server.url}/healthz", headers={"host": "anything"}).status_code == 200


def test_a_body_that_is_too_large_is_refused_however_it_comes(server):
    most = server.desk.limits.body
    assert f"{most:,}" in problem(post(server, bytes(most + 1)), "too-large")
    parts = (bytes(1 << 16) for _ in range(17))
    said = problem(post(server, parts), "too-large")  # of no length that is told: as far as it was read
    (got,) = re.findall(r"the body has ([\d,]+) bytes or more", said)
    assert most < int(got.replace(",", "")) <= 17 << 16
    until(lambda: metric(server, "invert_fast_held_bytes") == 0)


def answer_of(server, *sent: bytes) -> bytes:
    """What comes back for bytes on a connection of its own, which stays open until then."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for part in sent:
            connection.sendall(part)
        with connection.makefile("rb") as file:
            return file.readline()


HEAD = b"POST /v1/invert HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"


def test_a_length_that_is_not_true_is_found_out(start):
    server = start(limits=Limits(body=1 << 16, held=1 << 16, upload=0.3, grace=0.2))
    assert b" 408 " in answer_of(server, HEAD + b"Content-Length: 4096\r\n\r\n", b"short")
    assert b" 413 " in answer_of(server, HEAD + b"Content-Length: 99999999999999999999\r\n\r\n")
    assert b" 413 " in answer_of(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"20000\r\n", bytes(1 << 17))
    assert b" 400 " in answer_of(server, HEAD + b"Content-Length: -5\r\n\r\n")
    assert b" 400 " in answer_of(server, HEAD + b"Content-Length: 3\r\n\r\n", b"abc and more")
    until(lambda: not server.desk.requests)
    assert server.desk.held == 0


def test_a_server_that_is_full_says_when_to_come_again(start, inverter):
    server = start(limits=Limits(requests=1, grace=0.2))
    (states,) = inverter.capture(sentences()[:1])
    with Client(server.url, retries=0) as impatient, Client(server.url, retries=20) as patient:
        slow = impatient.invert([states, nonsense()])
        assert next(slow).certified
        refused = post(server, packed(states))
        assert "1 requests are here already" in problem(refused, "queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(ServeError, match="send it again") as caught:
            next(impatient.invert(states))
        assert (caught.value.status, caught.value.kind) == (429, "queue-full")
        assert caught.value.retry_after >= 1
        threading.Timer(0.2, slow.close).start()
        assert next(patient.invert(states)).certified


def test_bodies_of_all_requests_together_are_bounded(start, inverter):
    server = start(limits=Limits(body=1 << 18, held=1 << 18, grace=0.2))
    (states,) = inverter.capture(sentences()[:1])
    with Client(server.url, retries=0) as client:
        slow = client.invert([states, nonsense()])
        assert next(slow).certified
        assert "MiB or less" in problem(post(server, packed(nonsense(100))), "queue-full")
        slow.close()


def test_a_request_that_takes_too_long_is_ended(start, inverter):
    server = start(limits=Limits(timeout=0.5, grace=0.2))
    assert "in 0.5 s" in problem(post(server, packed(nonsense())), "timeout")
    until(lambda: metric(server, "invert_fast_running_texts") == 0)
    (states,) = inverter.capture(sentences()[:1])
    with Client(server.url) as client:
        found = client.invert([nonsense(), states])
        assert next(found).certified
        with pytest.raises(ServeError, match=r"in 0\.5 s") as caught:  # in the place of the last line
            next(found)
    assert (caught.value.status, caught.value.kind) == (None, "timeout")


def test_a_token_is_asked_for(start, inverter):
    server = start(tokens=(b"another-token-that-is-valid", TOKEN.encode()))
    for wrong in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer"):
        headers = {} if wrong is None else {"authorization": wrong}
        for answer in (post(server, b"", **headers), httpx.get(f"{server.url}/metrics", headers=headers)):
            assert "Authorization: Bearer TOKEN" in problem(answer, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    with Client(server.url, TOKEN) as client:
        (found,) = client.invert(inverter.capture(sentences()[:1]))
    assert found.text == sentences()[0]
    other = {"authorization": f"bearer {TOKEN}", "host": "behind.a.proxy"}
    assert httpx.get(f"{server.url}/v1/model", headers=other).status_code == 200


def test_an_error_of_ours_is_said_and_not_shown(start, inverter, monkeypatch):
    server = start()
    (states,) = inverter.capture(sentences()[:1])
    with monkeypatch.context() as patch:
        patch.setattr(server.metrics, "found", lambda *_: 1 / 0)  # in the worker, while the text is in its lane
        assert "try again" in problem(post(server, packed(states)), "internal")
    with monkeypatch.context() as patch:
        patch.setattr("invert_fast.serve.answer.Job", lambda *_: 1 / 0)  # and where requests are answered
        answer = post(server, packed(states))
        assert answer.headers["x-request-id"] in problem(answer, "internal")
    with Client(server.url) as client:
        assert next(client.invert(states)).certified


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="expected as many or more"):
        Limits(body=2, held=1)
