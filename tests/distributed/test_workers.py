"""Several processes say of every text what one says, whatever becomes of them, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from invert_fast import InputError
from invert_fast.cli.main import main
from invert_fast.distributed import invert_file, workers
from invert_fast.distributed.job import Job
from invert_fast.distributed.machine import common_cache, threads_of
from invert_fast.storage.states import open_states

from .states import TEXTS, captured, invert, said

DEADLY = '''
import os, signal
from dataclasses import dataclass, field
from invert_fast.strategies.auto import auto

@dataclass(frozen=True)
class Deadly:
    """Kills the process in which a text of so many tokens begins."""
    tokens: int
    name: str = "deadly"

    def bind(self, context):
        proposer, begin = auto().bind(context), None
        begin = proposer.begin
        def look(slots):
            if bool((context.lanes.target_length[slots] == self.tokens).any()):
                os.kill(os.getpid(), signal.SIGKILL)
            begin(slots)
        proposer.begin = look
        return proposer
'''


class Watched(workers.Workers):
    """Remembers what it told its workers."""

    def __enter__(self):
        self.told = []
        return super().__enter__()

    def _tell(self, slot, what, details=None):
        self.told.append((what, slot.place.first, [other.prepared for other in self._slots]))
        super()._tell(slot, what, details)


@pytest.mark.slow
def test_the_output_is_that_of_one_process(states, alone, tmp_path, monkeypatch, capsys):
    """In order, each text once, gone on with where another run was ended, and the first use made by one for all."""
    seen = []
    monkeypatch.setattr(workers, "Workers", lambda *args: seen.append(Watched(*args)) or seen[0])
    output = tmp_path / "several.jsonl"
    before = alone.read_bytes().splitlines(keepends=True)
    output.write_bytes(before[7] + before[2] + b'{"index": 4, "token_ids": [1')
    assert invert(states, output, "--batch-size", "1", "--workers", "2", "--resume", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["prompts"] == summary["certified"] == len(TEXTS) - 2
    assert said(output) == said(alone)
    prepared = [ready for what, _, ready in seen[0].told if what == "prepare"]
    assert prepared[:1] == [[False, False]]
    assert len(prepared) <= 2
    assert all(first for first, _ in prepared[1:])  # the other prepares after the first, unless nothing was left for it
    assert not any(slot.process.is_alive() for slot in seen[0]._slots)


@pytest.mark.slow
def test_a_text_that_kills_is_given_up_and_costs_no_other(states, alone, tmp_path, monkeypatch, caplog):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(workers, "TRIES", 2)
    from deadly import Deadly  # type: ignore[import-not-found]

    lengths = open_states(states).lengths()
    victim = max(range(len(TEXTS)), key=lengths.__getitem__)
    assert lengths.count(lengths[victim]) == 1
    found = []
    recovered = invert_file(states, "bundled", devices=("cpu", "cpu"), strategy=Deadly(lengths[victim]))
    with pytest.raises(RuntimeError, match=rf"1 texts were given up, text {victim} among them: .*signal 9, is memory"):
        found.extend(recovered)
    assert sorted(index for index, _ in found) == [i for i in range(len(TEXTS)) if i != victim]
    assert all(recovery.certified and recovery.text == TEXTS[index] for index, recovery in found)
    assert "another one starts" in caplog.text


def processes(group: int) -> list[int]:
    """Those of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc: what is left cannot be looked for")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_nothing_is_left_behind(tmp_path, how):
    output, temporary = tmp_path / "out.jsonl", tmp_path / "tmp"
    temporary.mkdir()
    states = captured(tmp_path, TEXTS * 8)  # a line soon, and minutes of work behind it
    command = [sys.executable, "-m", "invert_fast", "invert", "--model", "bundled", "--device", "cpu", "--workers", "2",
               states, "--output", output, "--strategy", "exhaustive", "--batch-size", "1"]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary)}
    run = subprocess.Popen(
        [*map(str, command)], env=environment, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while run.poll() is None and (not output.exists() or b"\n" not in output.read_bytes()):
        time.sleep(0.02)
    assert len(processes(run.pid)) >= 3
    os.killpg(run.pid, how) if how == signal.SIGINT else run.send_signal(how)  # a terminal tells all of a group
    error = run.communicate(timeout=60)[1].decode()
    assert run.returncode == (130 if how == signal.SIGINT else -how)
    deadline = time.monotonic() + 60
    while processes(run.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes(run.pid) == []
    assert "Traceback" not in error
    if how == signal.SIGINT:
        assert "--resume goes on from there" in error
        assert "leaked" not in error
        assert list(temporary.iterdir()) == []
    written = [json.loads(line)["index"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert 0 < len(written) == len(set(written)) < len(TEXTS)


def refused(*arguments: object, capsys) -> str:
    assert main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_what_a_worker_refuses_is_said_as_one_process_says_it(states, tmp_path, capsys):
    rows = open_states(states).rows(0, 40).clone()
    rows[33, 7] = np.nan
    save_file({"hidden": rows, "offsets": torch.tensor([0, 20, 40])}, tmp_path / "nan.safetensors")
    command = ["invert", "--model", "bundled", tmp_path / "nan.safetensors", "--output", tmp_path / "o.jsonl"]
    one = refused(*command, "--device", "cpu", capsys=capsys)
    assert "row 33" in one
    several = refused(*command, "--devices", "cpu,cpu", capsys=capsys)
    assert several.splitlines()[-1] == one.splitlines()[-1]
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cpu", "--devices", "cpu,cpu"], ["--device cpu", "--devices"]),
        (["--devices", "cpu,cpu,cpu", "--workers", "2"], ["--workers 2", "3 devices"]),
    ],
)
def test_options_that_do_not_go_together(states, tmp_path, capsys, options, words):
    said = refused("invert", "--model", "bundled", states, "--output", tmp_path / "o", *options, capsys=capsys)
    assert all(word in said for word in words)


def test_a_name_that_is_none_is_no_device(states, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["invert", "--model", "bundled", str(states), "--output", str(tmp_path / "o"), "--devices", "cpu,,cpu"])
    assert "'cpu,,cpu'" in capsys.readouterr().err


def test_threads_are_shared_out(monkeypatch):
    for given, shares in (("7", [3, 2, 2]), ("2", [1, 1, 1]), ("4,2", [2, 1, 1])):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads_of(3) == shares
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert sum(threads_of(2)) >= 2


def test_where_nothing_can_be_kept_workers_have_a_folder_for_this_run(cache, monkeypatch):
    with common_cache() as folder:
        assert folder == cache
    monkeypatch.setenv("INVERT_FAST_CACHE", "off")
    with common_cache() as folder:
        assert folder.is_dir()
    assert not folder.exists()
    kept = cache / "kept"
    kept.write_text("measured")
    monkeypatch.setenv("INVERT_FAST_CACHE", str(kept / "no folder"))
    with common_cache() as folder:
        (folder / "new").write_text("x")
    assert kept.read_text() == "measured"


@pytest.mark.slow
def test_the_example_runs(states, tmp_path):
    """As a script, which the processes that it spawns import."""
    document = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from invert_fast.distributed import invert_file\n.*?)```", document, re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "states.safetensors").symlink_to(states)
    command = [sys.executable, "example.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert sorted(said.splitlines()) == sorted(f"{i} {text} True" for i, text in enumerate(TEXTS))


@pytest.mark.slow
def test_texts_that_there_are_none_of(states):
    with pytest.raises(InputError, match=r"no text 99, .* has texts 0 to 11"):
        list(invert_file(states, "bundled", texts=[99]))


def test_a_job_needs_no_torch_to_be_told(states):
    code = "import sys, pickle; from invert_fast.distributed.worker import serve; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert Job(states, "bundled").strategy == "auto"
