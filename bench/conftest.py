"""The table that a benchmark run ends with: what was exact, and what it cost against a bare forward pass."""

import pytest

from invert_fast.report import table

COLUMNS = {
    "ratio_to_bare_forward": "time / bare forward",
    "forward_tokens_per_token": "forward tokens/token",
    "tokens_per_second": "tokens/s",
    "peak_mib": "peak MiB",
    "exact_match": "exact",
    "certified": "certified",
}
_rows: list[list[str]] = []


@pytest.fixture
def report_row():
    """`report_row(name, extra_info)` adds a line to the closing table."""

    def add(name: str, info: dict) -> None:
        _rows.append([name, *(f"{info[key]:,}" for key in COLUMNS)])

    return add


def pytest_terminal_summary(terminalreporter):
    if _rows:
        terminalreporter.section("against a bare forward pass of the same tokens")
        terminalreporter.write_line(table(["model, texts × tokens", *COLUMNS.values()], _rows))
