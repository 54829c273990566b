"""A disk that is full, or one that may only be read: said with the file's name, and gone on with once there is room."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invert_fast import Inverter
from invert_fast.cli.main import main

resource = pytest.importorskip("resource", reason="this system has no limits on the size of files")
TEXTS = [f"{place} is where the letter number {number} went." for number in range(6) for place in ("Rome", "Oslo")]
Disk = tuple[Path, Callable[[], object]]  # a folder with no room for the results, and how to make room


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here ({done.stderr.strip()}): the other kinds are tried")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["a limit on the size of files", "a full file system"])
def disk(request, tmp_path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "a full file system":
        with mounted(folder, "-o", "size=8k"):
            yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=1m", folder], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "prompts.txt").write_text("\n".join(TEXTS) + "\n")
    words = [
        "--model",
        "bundled",
        "--input",
        str(folder / "prompts.txt"),
        "--output",
        str(folder / "states.safetensors"),
    ]
    assert main(["capture", *words]) == 0
    inverter = Inverter.from_pretrained("bundled")
    inverter.invert(inverter.capture("x"))  # what is measured once is in the cache
    return folder


def test_results_that_do_not_fit_are_gone_on_with(disk, inputs, capsys):
    folder, make_room = disk
    output = folder / "recovered.jsonl"
    words = ["invert", "--model", "bundled", str(inputs / "states.safetensors"), "--output", str(output)]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(output) in error
    assert "--resume" in error
    before = output.read_bytes()
    make_room()
    assert main([*words, "--resume"]) == 0
    found = before[: before.rfind(b"\n") + 1].splitlines()
    assert set(found) <= set(output.read_bytes().splitlines()), "what was found is found again"
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(row["index"] for row in rows) == list(range(len(TEXTS)))
    assert all(row["text"] == TEXTS[row["index"]] for row in rows)
    assert list(folder.iterdir()) == [output]


def test_states_that_do_not_fit_leave_nothing(disk, inputs, capsys):
    folder, make_room = disk
    output = folder / "states.safetensors"
    words = ["capture", "--model", "bundled", "--input", str(inputs / "prompts.txt"), "--output", str(output)]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(output) in error
    assert "free some space" in error
    assert list(folder.iterdir()) == []
    make_room()
    assert main(words) == 0
    assert output.read_bytes() == (inputs / "states.safetensors").read_bytes()


def test_a_file_system_that_may_only_be_read(inputs, capsys, tmp_path):
    """Refused before the model is looked for."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-o", "ro"):
        words = ["capture", "--model", "./absent", "--input", str(inputs / "prompts.txt")]
        assert main([*words, "--output", str(folder / "states.safetensors")]) == 2
    assert "Read-only file system" in capsys.readouterr().err
