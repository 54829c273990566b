"""The job script of docs/, run as SLURM runs it, and the commands that it says come before and after."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from invert_fast.storage.shards import note_of

from .states import said

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm_array.sh"
TASKS = 2


@pytest.fixture
def environment(states, tmp_path) -> dict[str, str]:
    """What a task finds set, `invert-fast` as a command included."""
    command = tmp_path / "bin" / "invert-fast"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m invert_fast "$@"\n')
    command.chmod(0o755)
    told = {"MODEL": "bundled", "STATES": str(states), "OUT": str(tmp_path / "recovered"), "SLURM_CPUS_PER_TASK": "1"}
    told |= {"SLURM_ARRAY_TASK_COUNT": str(TASKS), "SLURM_ARRAY_TASK_MIN": "0"}
    return os.environ | told | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}


def task(environment: dict[str, str], number: int) -> subprocess.Popen[str]:
    told = environment | {"SLURM_ARRAY_TASK_ID": str(number)}
    options = ["--device", "cpu", "--batch-size", "1"]
    return subprocess.Popen(["bash", SCRIPT, *options], env=told, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_tasks_of_an_array_make_the_whole(environment, alone):
    """All at once, one of them twice, which only one of both does; then what depends on them."""
    runs = [task(environment, number) for number in (*range(TASKS), 1)]
    said_by = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs[:1]] == [0], said_by
    assert sorted(run.returncode for run in runs[1:]) in ([0, 0], [0, 2]), said_by
    assert all(
        run.returncode == 0 or "is being written by process" in said for run, said in zip(runs, said_by, strict=True)
    )
    out = Path(environment["OUT"])
    assert note_of(out / "part-1.jsonl").is_file()
    (merge,) = re.findall(r"--wrap '(.*)'", SCRIPT.read_text(encoding="utf-8"))
    subprocess.run(["bash", "-c", merge], env=environment, check=True)
    assert said(out.with_suffix(".jsonl")) == said(alone)


def test_what_is_not_set_is_named(environment):
    del environment["STATES"]
    run = task(environment, 0)
    assert "STATES: the states file" in run.communicate()[1]
    assert run.returncode == 1


@pytest.mark.slow
def test_a_shard_that_was_refused_is_no_success(environment, tmp_path):
    environment["STATES"] = str(tmp_path / "none.safetensors")
    run = task(environment, 0)
    assert "none.safetensors does not exist" in run.communicate()[1]
    assert run.returncode == 2
