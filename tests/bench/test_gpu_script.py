"""`bench/gpu.sh`, the one command for a machine with a GPU: its rehearsal runs every stage, small, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench/gpu.sh"
STAGES = {"test-gpu", "captured", "kernels", "modes", "speculative"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script is one of bash and GNU's timeout")


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [SCRIPT, *arguments], env=own | {"PYTHON": sys.executable, **more}, capture_output=True, text=True, timeout=900
    )


def test_a_dry_run_names_the_stages_and_starts_none():
    told = run("--dry-run")
    assert told.returncode == 0, told.stderr
    assert {line.split()[0] for line in told.stdout.splitlines()} >= STAGES


def test_what_it_does_not_know_is_refused():
    told = run("--quickly")
    assert told.returncode == 2
    assert "expected nothing, --dry-run or --rehearse" in told.stderr


@pytest.mark.slow
def test_the_rehearsal_runs_every_stage_and_keeps_what_it_measures(tmp_path):
    """The package is not built for it again: the one that is installed serves."""
    told = run("--rehearse", OUT=str(tmp_path / "out"), INVERT_FAST_SITE=str(tmp_path / "site"))
    stages = (tmp_path / "out/stages.txt").read_text()
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    assert {line.split(":")[0] for line in stages.splitlines() if ": done in" in line} == STAGES
    found = json.loads((tmp_path / "out/results.json").read_text())
    rows, (settings,) = found["rows"], found["settings"]
    assert settings.startswith("PyTorch ")
    assert settings in (tmp_path / "out/results.md").read_text()
    assert {row["bench"].split("[")[0] for row in rows} >= {"bench_steps", "bench_gradient_modes", "bench_texts"}
