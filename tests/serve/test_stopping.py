"""A server that is told to stop takes nothing new, and lets what runs finish within its grace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from invert_fast.cli.demo import sentences
from invert_fast.cli.main import main
from invert_fast.serve import Client, Limits, ServeError, Server
from invert_fast.serve.client import packed

from .conftest import TYPE, nonsense, until

TOKEN = "a-token-of-more-than-sixteen"


def test_what_runs_is_finished_and_what_is_new_refused(inverter):
    server = Server(inverter, port=0, limits=Limits(grace=60))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.worker.ready.wait(60)
    (states,) = inverter.capture(sentences()[:1])
    with Client(server.url, retries=0) as client, Client(server.url, retries=0) as other:
        assert client.model()  # a connection that is open already
        slow = other.invert([states, nonsense(2)])
        assert next(slow).certified
        server.stop()
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        for late in (client, Client(server.url, retries=0)):
            with pytest.raises(ServeError, match="about to stop") as caught:
                next(late.invert(states))
            assert (caught.value.status, caught.value.kind) == (503, "stopping")
            assert caught.value.retry_after
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        (last,) = slow  # in the meantime
        assert not last.certified
    thread.join(60)
    assert not thread.is_alive()
    assert not server.worker.alive
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")


def test_a_worker_that_dies_ends_the_server(inverter, monkeypatch):
    server = Server(inverter, port=0)
    monkeypatch.setattr(server.worker, "_prepare", lambda: 1 / 0)
    assert server.run() is False
    assert isinstance(server.worker.error, ZeroDivisionError)


@pytest.mark.slow
def test_the_command_serves_until_sigterm(inverter, tmp_path):
    """In a process of its own: what it says, a token, one request that is given up at the end of the grace."""
    command = [sys.executable, "-m", "invert_fast", "serve", "--model", "bundled", "--device", "cpu", "--port", "0"]
    options = ["--states-dtype", "float32", "--grace", "0.5"]
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, "INVERT_FAST_TOKEN": TOKEN}
    )
    assert process.stderr is not None
    try:
        url = next(word.rstrip(",") for line in process.stderr for word in line.split() if word.startswith("http://"))
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        reader.start()
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        (states,) = inverter.capture(sentences()[:1])
        assert httpx.post(f"{url}/v1/invert", content=packed(states), headers=TYPE).status_code == 401
        headers = {**TYPE, "authorization": f"Bearer {TOKEN}"}
        with httpx.stream(
            "POST", f"{url}/v1/invert", content=packed([states, nonsense()]), headers=headers, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines))["text"] == sentences()[0]
            process.send_signal(signal.SIGTERM)
            (last,) = map(json.loads, lines)
            assert last["error"]["type"] == "urn:invert-fast:stopping"
        assert process.wait(60) == 0
        reader.join(10)
        assert TOKEN not in "".join(said)
        assert "Traceback" not in "".join(said)
        assert any("1 requests are given up after 0.5 s" in line for line in said)
    finally:
        process.kill()
        process.wait()


def test_what_cannot_be_served_is_said_at_once(capsys, tmp_path, monkeypatch):
    model = ["serve", "--model", "no/such/model"]
    monkeypatch.delenv("INVERT_FAST_TOKEN", raising=False)
    short, empty = tmp_path / "short", tmp_path / "empty"
    short.write_text("xyzzy\n")
    empty.write_text("\n")
    for options, says in (
        (["--host", "0.0.0.0"], "expected a token for that: set INVERT_FAST_TOKEN or give --token-file"),
        (["--host", "192.0.2.1"], "can be reached from other machines"),
        (["--token-file", str(short)], "a token of 5 characters, expected 16 or more"),
        (["--token-file", str(empty)], "is empty, expected a token a line"),
        (["--token-file", str(tmp_path / "none")], "No such file"),
        (["--max-body", "512"], "raise --max-bodies"),
        (["--preset", "fast"], "add --strategy continuous"),
    ):
        assert main([*model, *options]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert "xyzzy" not in error
        assert "Traceback" not in error
    for options in (["--port", "70000"], ["--grace", "-1"], ["--max-texts", "0"]):
        with pytest.raises(SystemExit):
            main([*model, *options])


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_what_installs_it(package, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("invert_fast.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "--model", "no/such/model"]) == 2
    assert f"needs {package}: pip install 'invert_fast[serve]'" in capsys.readouterr().err


def test_an_address_in_use_is_said(inverter, server, capsys):
    port = server.url.rpartition(":")[2]
    assert main(["serve", "--model", "bundled", "--device", "cpu", "--port", port]) == 2
    assert f"127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
