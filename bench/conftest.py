"""The tables that a benchmark run ends with: what was exact, and what it cost against the plain way."""

import json
import os
from pathlib import Path

import pytest
import torch

from invert_fast.cli.report import table

FORWARD = {
    "ratio_to_bare_forward": "time / bare forward",
    "forward_tokens_per_token": "forward tokens/token",
    "tokens_per_second": "tokens/s",
    "peak_mib": "peak MiB",
    "exact_match": "exact",
    "certified": "certified",
}
KERNELS = {
    "milliseconds": "ms",
    "plain_milliseconds": "plain ms",
    "times_faster_than_plain": "× faster",
    "gigabytes_per_second": "GB/s",
    "share_of_copy": "of a copy",
    "gigaoperations_per_second": "G-op/s",
    "share_of_arithmetic": "of the ceiling",
}
STEPS = {
    "milliseconds_per_step": "ms/step",
    "eager_milliseconds_per_step": "eager ms/step",
    "times_faster_than_eager": "× eager",
    "microseconds_per_lane_step": "µs/lane step",
    "graph": "graph",
}
MODES = {
    "milliseconds_per_token": "ms/token",
    "steps_per_token": "steps/token",
    "forward_tokens_per_token": "forward tokens/token",
    "exact_match": "exact",
    "certified": "certified",
}
STARTUP = {
    "seconds": "s",
    "import_torch_seconds": "import torch, s",
    "ratio_to_import_torch": "ratio",
}
SERVED = {
    "requests_per_second_alone": "requests/s of one client",
    "requests_per_second": "of all",
    "times_as_many_as_alone": "ratio",
    "tokens_per_second": "tokens/s",
    "milliseconds_alone": "ms a request, one client",
    "milliseconds": "all",
    "milliseconds_of_95_percent": "95 % within",
}
WORKERS = {
    "seconds_of_one": "s, one worker",
    "seconds": "s",
    "times_as_fast": "ratio",
    "start_of_one": "start, one worker",
    "start": "start",
    "times_as_fast_once_started": "ratio without the start",
    "tokens_per_second_of_one": "tokens/s, one worker",
    "tokens_per_second": "tokens/s",
}
_step_rows: list[list[str]] = []
_mode_rows: list[list[str]] = []
_forward_rows: list[list[str]] = []
_kernel_rows: list[list[str]] = []
_startup_rows: list[list[str]] = []
_serve_rows: list[list[str]] = []
_worker_rows: list[list[str]] = []


@pytest.fixture
def report_row():
    """`report_row(name, extra_info)` adds a line to the closing table of inversions."""

    def add(name: str, info: dict) -> None:
        _forward_rows.append([name, *(f"{info[key]:,}" for key in FORWARD)])

    return add


@pytest.fixture
def kernel_row():
    """`kernel_row(name, extra_info)` adds a line to the closing table of kernels."""

    def add(name: str, info: dict) -> None:
        _kernel_rows.append([name, *(f"{info[key]:,}" for key in KERNELS)])

    return add


@pytest.fixture
def step_row():
    """`step_row(name, extra_info)` adds a line to the closing table of optimisation steps."""

    def add(name: str, info: dict) -> None:
        _step_rows.append([name, *(str(info[key]) for key in STEPS)])

    return add


@pytest.fixture
def mode_row():
    """`mode_row(name, extra_info)` adds a line to the closing table of gradient modes."""

    def add(name: str, info: dict) -> None:
        _mode_rows.append([name, *(f"{info[key]:,}" for key in MODES)])

    return add


@pytest.fixture
def startup_row():
    """`startup_row(name, extra_info)` adds a line to the closing table of commands."""

    def add(name: str, info: dict) -> None:
        _startup_rows.append([name, *(str(info[key]) for key in STARTUP)])

    return add


@pytest.fixture
def serve_row():
    """`serve_row(name, extra_info)` adds a line to the closing table of clients of a server."""

    def add(name: str, info: dict) -> None:
        _serve_rows.append([name, *(f"{info[key]:,}" for key in SERVED)])

    return add


@pytest.fixture
def workers_row():
    """`workers_row(name, extra_info)` adds a line to the closing table of processes that share a file."""

    def add(name: str, info: dict) -> None:
        _worker_rows.append([name, *(f"{info[key]:,}" for key in WORKERS)])

    return add


@pytest.fixture(autouse=True)
def kept_at_once(request):
    """INVERT_FAST_BENCH_ROWS names a file that gets each result as it is measured: a time limit costs only the rest."""
    yield
    path, bench = os.environ.get("INVERT_FAST_BENCH_ROWS"), request.node.funcargs.get("benchmark")
    if path and bench is not None and bench.extra_info:
        with Path(path).open("a", encoding="utf-8") as file:
            row = {"bench": request.node.name, "settings": settings(), **bench.extra_info}
            file.write(json.dumps(row) + "\n")


def settings() -> str:
    """What a product comes to hangs on these, and how long it takes."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    sums = "reduced" if cuda.allow_bf16_reduced_precision_reduction else "in fp32"
    return (
        f"PyTorch {torch.__version__}, products {cuda.fp32_precision}, convolutions {cudnn.conv.fp32_precision}, "
        f"bf16 sums {sums} (verification sets its own)"
    )


def pytest_terminal_summary(terminalreporter):
    if _forward_rows:
        terminalreporter.section("against a bare forward pass of the same tokens")
        terminalreporter.write_line(table(["model, texts × tokens", *FORWARD.values()], _forward_rows))
    if _step_rows:
        terminalreporter.section("one optimisation step of all lanes: captured against kernel by kernel")
        terminalreporter.write_line(table(["lanes, search", *STEPS.values()], _step_rows))
    if _mode_rows:
        terminalreporter.section("gradient modes from end to end")
        terminalreporter.write_line(table(["mode, lanes", *MODES.values()], _mode_rows))
    if _kernel_rows:
        terminalreporter.section("against plain PyTorch and the ceilings of the machine")
        terminalreporter.write_line(table(["op: backend", *KERNELS.values()], _kernel_rows))
    if _startup_rows:
        terminalreporter.section("whole commands against the import of PyTorch")
        terminalreporter.write_line(table(["invert-fast", *STARTUP.values()], _startup_rows))
    if _serve_rows:
        terminalreporter.section("clients of a server, together and one at a time")
        terminalreporter.write_line(table(["clients", *SERVED.values()], _serve_rows))
    if _worker_rows:
        terminalreporter.section("processes that share a file, each with one thread")
        terminalreporter.write_line(table(["workers, texts × tokens", *WORKERS.values()], _worker_rows))
