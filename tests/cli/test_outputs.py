"""What a command writes: looked at before any work, by one process at a time, and never half of it under its name."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from invert_fast.cli.main import main
from invert_fast.storage.atomic import partial_name, replacing, sweep, write_whole

HOLDER = """
import sys, time
from pathlib import Path
from invert_fast.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("The river was\nlow.\n")
    return path


def capture(prompts: Path, output: Path, *more: str, model: str | Path = "bundled") -> int:
    return main(["capture", "--model", str(model), "--input", str(prompts), "--output", str(output), *more])


def refused(capsys, call, *words: str) -> None:
    capsys.readouterr()
    assert call() == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    assert all(word in error for word in words), error


@pytest.mark.parametrize("by", ["itself", "a hard link", "a symbolic link", "another way to it", "the model"])
def test_what_is_read_is_not_written(prompts, capsys, by, tmp_path):
    output, model, read = prompts, "bundled", prompts
    if by == "a hard link":
        output = tmp_path / "other.txt"
        output.hardlink_to(prompts)
    elif by == "a symbolic link":
        output = tmp_path / "other.txt"
        output.symlink_to(prompts)
    elif by == "another way to it":
        (tmp_path / "folder").mkdir()
        output = tmp_path / "folder" / ".." / "prompts.txt"
    elif by == "the model":
        model = tmp_path / "model"
        model.mkdir()
        output = read = model / "model.safetensors"
        read.write_bytes(b"weights")
    before = read.read_bytes()
    refused(capsys, lambda: capture(prompts, output, "--overwrite", model=model), "both written and read", "touched")
    assert read.read_bytes() == before


def test_an_output_that_cannot_be_is_refused_before_any_work(prompts, capsys, tmp_path):
    """The model that is named is not there: nobody got as far as to look for it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for output, *words in (
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "no" / "such" / "folder" / "o", "no folder", "make it first"),
        (Path("/sys/o") if os.path.isdir("/sys") else None, "cannot be written"),
    ):
        if output is None:
            pytest.skip("no /sys here, where not even root may write: the last case was not tried")
        refused(capsys, lambda to=output: capture(prompts, to, "--overwrite", model="./absent"), str(output), *words)


def test_one_process_at_a_time_writes_an_output(prompts, capsys, tmp_path):
    """Whoever comes second is told who is first; a holder that is killed holds nothing."""
    output = tmp_path / "states.safetensors"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused(
            capsys, lambda: capture(prompts, output), "being written by process", str(holder.pid), "another --output"
        )
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / f".{output.name}.lock").exists()
        assert capture(prompts, output) == 0
    finally:
        holder.kill()
        holder.wait()
    assert not (tmp_path / f".{output.name}.lock").exists()


def test_what_a_kill_left_beside_an_output_is_removed_and_nothing_else(prompts, tmp_path):
    output = tmp_path / "states.safetensors"
    left, folder = partial_name(output), partial_name(output)
    left.write_bytes(b"half")
    folder.mkdir()
    (folder / "states.safetensors").write_bytes(b"half")
    others = [
        partial_name(tmp_path / "another.safetensors"),
        tmp_path / ".states.safetensors.settings",
        tmp_path / "states.safetensors.partial",
    ]
    for other in others:
        other.write_bytes(b"somebody's")
    assert capture(prompts, output) == 0
    assert sorted(tmp_path.iterdir()) == sorted([prompts, output, *others])
    assert sweep(tmp_path, older=3600) == 0, "of a process that may still be writing"
    assert sweep(tmp_path) == 1


def test_files_are_for_whom_the_user_wants(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "own", b"1")
        os.umask(0o022)
        write_whole(tmp_path / "all", b"1")
        (tmp_path / "all").chmod(0o640)
        write_whole(tmp_path / "all", b"2")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "all").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to(tmp_path / "all")
    write_whole(tmp_path / "link", b"3")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "all").read_bytes() == b"3"


def test_an_interrupted_write_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def interrupted():
        with replacing(path) as file:
            file.write(b"new and longer")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", ["invert", "logits invert", "logits search"])
def test_resuming_an_output_of_another_kind_leaves_it(prompts, capsys, tmp_path, command):
    """A deep nest of brackets, a binary file, an index that is no number."""
    states, output = tmp_path / "states.safetensors", tmp_path / "o.jsonl"
    logits = tmp_path / "logits.safetensors"
    main(["logits", "capture", "--model", "bundled", "--input", str(prompts), "--output", str(logits)])
    capture(prompts, states)
    given = str(states if command == "invert" else logits)
    for data in (b"[" * 100_000 + b"\n", states.read_bytes() + b"\n", json.dumps({"index": "0"}).encode() + b"\n"):
        output.write_bytes(data)
        words = [*command.split(), "--model", "bundled", given, "--output", str(output), "--resume"]
        refused(capsys, lambda words=words: main(words), "line 1", "another --output")
        assert output.read_bytes() == data
