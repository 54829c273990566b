"""What clients of `invert-fast serve` gain by coming together: the lanes that they share.

    pytest bench/bench_serve.py --benchmark-only

The server runs in a thread of this process, its clients in a process of their own: on two cores they share these. A
round sends as many requests by one client as by all, one after the other, so that both meet the same machine;
`extra_info` has medians, and the ratio of requests a second; also where a request's CPU time goes, to the thread of the
model (without what PyTorch's own threads add to it: none with OMP_NUM_THREADS=1) and to that of HTTP, checks and JSON.
Every text has 32 tokens and is a request of its own; the answers are checked while they come (all certified), and
against the texts before.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import workloads
from safetensors.numpy import save_file

from invert_fast.serve import Client, Server
from invert_fast.serve.client import packed

TOKENS, TEXTS, ROUNDS = 32, 256, 7
CLIENTS = (8, 32, 64)


class Load:
    """The process of the clients."""

    def __init__(self, server: Server, http: threading.Thread, bodies: list[bytes], folder: Path):
        self.threads = {"engine": server.worker._thread, "http": http}
        path = folder / "bodies.safetensors"
        save_file({str(i): np.frombuffer(body, np.uint8) for i, body in enumerate(bodies)}, path)
        script = Path(__file__).with_name("serve_load.py")
        command = [sys.executable, str(script), server.url.rpartition(":")[2], str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, clients: int, requests: int = TEXTS) -> dict:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        before = self.cpu()
        stdin.write(f"{clients} {requests}\n")
        stdin.flush()
        found = json.loads(stdout.readline())
        assert found["certified"] == requests
        return found | {name: (seconds - before[name]) / requests for name, seconds in self.cpu().items()}

    def cpu(self) -> dict[str, float]:
        """Seconds of a processor that each thread had so far."""
        clocks = {name: time.pthread_getcpuclockid(thread.ident or 0) for name, thread in self.threads.items()}
        return {name: time.clock_gettime(clock) for name, clock in clocks.items()}


def cpu_milliseconds(runs: list[dict], thread: str) -> float:
    return round(1e3 * statistics.median(run[thread] for run in runs), 2)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    inverter = workloads.load("bundled")
    rows, _ = workloads.real_rows(inverter, TEXTS, TOKENS)
    states = inverter.capture(rows)
    server = Server(inverter, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    assert server.worker.ready.wait(600)
    with Client(server.url) as client:
        for found in client.invert(states):
            assert found.token_ids == rows[found.index]
            assert found.certified
    made = Load(server, thread, [packed(one) for one in states], tmp_path_factory.mktemp("load"))
    yield made
    if made.process.stdin is not None:
        made.process.stdin.close()
    made.process.wait(60)
    server.stop()
    thread.join(60)


@pytest.mark.parametrize("clients", CLIENTS)
def bench_clients(benchmark, serve_row, load, clients):
    alone: list[dict] = []
    together: list[dict] = []
    benchmark.pedantic(
        lambda: together.append(load.run(clients)),
        setup=lambda: alone.append(load.run(1, TEXTS // 4)),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    one, all_ = (statistics.median(run["seconds"] / len(run["took"]) for run in runs[1:]) for runs in (alone, together))
    took = [seconds for run in together[1:] for seconds in run["took"]]
    benchmark.extra_info |= {
        "requests_per_second_alone": round(1 / one, 1),
        "requests_per_second": round(1 / all_, 1),
        "tokens_per_second": round(TOKENS / all_),
        "times_as_many_as_alone": round(one / all_, 2),
        "milliseconds_alone": round(1e3 * statistics.median(s for run in alone[1:] for s in run["took"]), 1),
        "milliseconds": round(1e3 * statistics.median(took), 1),
        "milliseconds_of_95_percent": round(1e3 * float(np.quantile(took, 0.95)), 1),
        "cpu_milliseconds_alone": {name: cpu_milliseconds(alone[1:], name) for name in load.threads},
        "cpu_milliseconds": {name: cpu_milliseconds(together[1:], name) for name in load.threads},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    serve_row(f"{clients} clients", benchmark.extra_info)
