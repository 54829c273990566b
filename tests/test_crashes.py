"""A test that kills its process ends the run, in time, and is named."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("xdist", reason="pytest-xdist is not installed: pip install -e '.[test]'")

ROOT = Path(__file__).resolve().parents[1]
FINE = """
import pytest, time

@pytest.mark.parametrize("n", range(5))
def test_fine(n):
    time.sleep(0.05)
"""
DEADLY = """
import os, signal

def test_before(): pass
def test_that_dies(): {death}
def test_after(): pass
"""


NAMED = r"worker 'gw\d' crashed while running '.*test_3.py::test_that_dies'"
CLOSED = """

def pytest_runtest_logreport(report):
    if "test_before" in report.nodeid and hasattr(report, "node"):
        def send(_):
            raise OSError("cannot send (already closed?)")
        report.node.channel.send = send
"""


def of_the_makefile() -> list[str]:
    """The options that `make test` gives pytest."""
    (options,) = re.findall(r"bin/pytest (-n .*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    return shlex.split(options)


def run_pytest(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """On a folder of its own, by our settings; not as a part of the run that this test is in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", arguments[-1], *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("options", "death"),
    [
        (["-n", "2", "--dist", "loadfile"], "os._exit(3)"),
        (["-n", "2", "--dist", "loadfile"], "os.kill(os.getpid(), signal.SIGSEGV)"),
        (of_the_makefile(), "os._exit(3)"),
    ],
    ids=["exit", "segfault", "make test"],
)
def test_a_worker_that_dies_ends_the_run_and_is_named(tmp_path, options, death):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "crashes.py").read_text(encoding="utf-8"))
    for number in (1, 2, 4, 5):
        (tmp_path / f"test_{number}.py").write_text(FINE)
    (tmp_path / "test_3.py").write_text(DEADLY.format(death=death))
    start, run = time.monotonic(), run_pytest(*options, tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(NAMED, run.stdout), run.stdout
    assert time.monotonic() - start < 60, "it is a matter of seconds; the rest is a busy machine"


def test_a_worker_that_is_sent_more_tests_after_its_death_is_named(tmp_path):
    """The pipe to it is broken, and its end has not been read yet: a matter of microseconds, so the break is ours."""
    crashes = (ROOT / "tests" / "crashes.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(crashes + CLOSED)
    (tmp_path / "test_3.py").write_text(DEADLY.format(death="import time; time.sleep(1); os._exit(3)"))
    for number in (4, 5, 6):
        (tmp_path / f"test_{number}.py").write_text(FINE)
    run = run_pytest("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(NAMED, run.stdout), run.stdout


def test_a_number_of_restarts_that_was_asked_for_is_kept(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "crashes.py").read_text(encoding="utf-8"))
    (tmp_path / "test_it.py").write_text(
        "def test_it(pytestconfig): assert pytestconfig.option.maxworkerrestart == '5'\n"
    )
    run = run_pytest("--max-worker-restart=5", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
