"""A server on the loopback interface that answers as a test wants, and an honest answer to change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest

from invert_fast.extract import (
    Client,
    Endpoint,
    HttpApi,
)

from .loopback import Quiet, listening

pytest.importorskip("httpx", reason="httpx cannot be imported: pip install -e '.[test]'")
V = 40
LOGITS = np.sort(np.random.default_rng(0).normal(0, 3, V))[::-1]
Body = dict[str, Any]


def log_probs(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def honest(
    body: Body, top: int | None = None, bias: float = 1.0, shown: float = 1.0, chosen: int | None = None
) -> Body:
    """What llama.cpp would say. top: log-probs at most; bias, shown: how much of the bias the argmax and the log-probs
    follow."""
    added = np.zeros(V)
    for token, value in body.get("logit_bias", {}).items():
        added[int(token)] = value
    token = int((LOGITS + bias * added).argmax()) if chosen is None else chosen
    told = log_probs(LOGITS + shown * added)
    count = min(body.get("logprobs", 0), V if top is None else top)
    order = np.argsort(-told, kind="stable")[:count]
    row = {"id": token, "token": "", "logprob": float(told[token])}
    row["top_logprobs"] = [{"id": int(i), "token": "", "logprob": float(told[i])} for i in order]
    return {"choices": [{"text": "x", "logprobs": {"content": [row]}}]}


def changed(body: Body, change: Callable[[Body], object]) -> Body:
    answer = honest(body)
    change(answer["choices"][0]["logprobs"]["content"][0])
    return answer


class RawError(Exception):
    """The handler is to write this by itself."""

    def __init__(self, write: Callable[[BaseHTTPRequestHandler], object]):
        self.write = write


@contextmanager
def served(answer: Callable[[Body], Body], models: Any = None) -> Iterator[str]:
    models = {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_vocab": V}}]} if models is None else models

    class Handler(Quiet, BaseHTTPRequestHandler):
        def reply(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply(models if self.path.endswith("models") else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.reply(answer(body) if self.path.endswith("completions") else {})
            except RawError as raw:
                raw.write(self)

    with listening(Handler) as url:
        yield url


def client_of(url: str, seconds: float = 30.0, **options: Any) -> Client:
    options = {"budget": 5000, "sleep": lambda _: None} | options
    return Client(HttpApi(Endpoint(url, timeout=seconds)), **options)
