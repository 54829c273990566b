"""Every Triton kernel compiles for the GPUs of today, in registers: the check of a kernel that needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux)")

TARGETS = {80: 163, 90: 227, 100: 227, 120: 99}  # KiB of shared memory that a block can have there; Triton asks for it


@pytest.fixture(scope="module")
def needs(tmp_path_factory) -> list[dict]:
    """What each kernel needs on each target, also printed as a table."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("kernel_targets.py"), *map(str, TARGETS)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    if new := sum(row["written"] is None for row in rows):
        command = f"{Path(__file__).with_name('kernel_targets.py')} --write {' '.join(map(str, TARGETS))}"
        print(f"{new} kernels were compiled anew; write that down: python {command}")
    print(f"\n{'kernel':40} target  registers  stack  local  shared")
    for row in rows:
        print("{kernel:40} {target:6} {registers:10} {stack:6} {local:6} {shared:7}".format(**row))
    return rows


@pytest.mark.parametrize("capability", TARGETS)
def test_kernels_compile_without_spills(needs, capability):
    rows = [row for row in needs if row["target"] == f"sm_{capability}"]
    known = {"nearest", "unpack", "residuals", "adam", "attention", "best"}
    assert {row["kernel"].split()[0] for row in rows} >= known
    stack = {120: 16}.get(capability, 0)  # bytes that two kernels put on the stack there, beside what they compute
    assert [row for row in rows if row["stack"] > stack or row["local"]] == [], "registers are spilled"
    assert [row for row in rows if row["shared"] > TARGETS[capability] << 10] == []


def test_what_is_written_down_is_what_comes_out(needs):
    """At least the sample was compiled now, whatever the table says of it."""
    known = [row for row in needs if row["written"] is not None]
    for row in known:
        assert {name: row[name] for name in row["written"]} == row["written"]
