"""Real servers on loopback, in a thread of this process, and the inverter that they serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import torch
from torch import Tensor

from invert_fast import Inverter
from invert_fast.serve import Client, Limits, Server

TYPE = {"content-type": "application/octet-stream"}
Start = Callable[..., Server]


@pytest.fixture(scope="session")
def inverter() -> Inverter:
    return Inverter.from_pretrained("bundled", device="cpu")


@contextmanager
def serving(inverter: Inverter, **options) -> Iterator[Server]:
    """A server that is ready, until the end of the block."""
    server = Server(inverter, port=0, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.worker.ready.wait(120)
        until(lambda: _answers(server))
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def server(inverter) -> Iterator[Server]:
    """One that most tests ask, with limits that they can reach."""
    with serving(inverter, limits=Limits(body=1 << 20, held=8 << 20, texts=64, grace=1.0)) as made:
        yield made


@pytest.fixture(scope="session")
def client(server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


@pytest.fixture
def start(inverter) -> Iterator[Start]:
    """`start(**options)`: a server of the test's own."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(inverter, **{"limits": Limits(grace=0.2), **options}))


def until(happens: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until it does; it is a failure where it does not."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def nonsense(rows: int = 200, width: int = 256) -> Tensor:
    """Rows of no text: each costs a search of the whole vocabulary, minutes for all of them."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def metric(server: Server, name: str) -> float:
    """What `/metrics` says."""
    page = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.split("{")[0].split(" ")[0] == name)
