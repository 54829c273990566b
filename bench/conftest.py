"""The tables that a benchmark run ends with: what was exact, and what it cost against the plain way."""

import pytest

from invert_fast.report import table

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
_forward_rows: list[list[str]] = []
_kernel_rows: list[list[str]] = []


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


def pytest_terminal_summary(terminalreporter):
    if _forward_rows:
        terminalreporter.section("against a bare forward pass of the same tokens")
        terminalreporter.write_line(table(["model, texts × tokens", *FORWARD.values()], _forward_rows))
    if _kernel_rows:
        terminalreporter.section("against plain PyTorch and the ceilings of the machine")
        terminalreporter.write_line(table(["op: backend", *KERNELS.values()], _kernel_rows))
