"""The command line as a user meets it: files, exit codes, resume, shards, and one line for each kind of bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from invert_fast.cli import demo
from invert_fast.cli.main import main
from invert_fast.storage.states import open_states

SUMMARY = {"prompts", "tokens", "certified", "seconds", "tokens_per_second", "forward_tokens_per_token", "strategy",
           "device", "dtype"}  # fmt: skip
LINE = {"index", "token_ids", "text", "certified", "status", "residual", "margin", "first_failure", "forward_tokens",
        "seconds"}  # fmt: skip
TEXTS = [*demo.sentences()[:6], "", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """prompts.jsonl and its states.safetensors, captured with the bundled model."""
    root = tmp_path_factory.mktemp("cli")
    (root / "prompts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    assert run("capture", "--input", root / "prompts.jsonl", "--output", root / "states.safetensors") == 0
    return root


def run(command, *rest, model="bundled"):
    return main([command, *(["--model", model] if model else []), *map(str, rest)])


def lines(path):
    return {row["index"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def failure(capsys, *arguments, model="bundled"):
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert run(*arguments, model=model) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("invert-fast: ")
    assert len(error.splitlines()) == 1, error
    return error


def test_capture_invert_score(folder, tmp_path, capsys):
    out = tmp_path / "recovered.jsonl"
    assert run("invert", folder / "states.safetensors", "--output", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary) == SUMMARY
    assert summary["prompts"] == summary["certified"] == len(TEXTS)
    rows = lines(out)
    assert sorted(rows) == list(range(len(TEXTS)))
    assert all(set(row) == LINE for row in rows.values())
    assert [rows[i]["text"] for i in range(len(TEXTS))] == TEXTS
    for model, accuracy in (("bundled", 1.0), (None, None)):
        assert run("score", out, "--reference", folder / "prompts.jsonl", "--json", model=model) == 0
        assert json.loads(capsys.readouterr().out) == {
            "prompts": len(TEXTS), "exact_match": 1.0, "token_accuracy": accuracy, "similarity": 1.0}  # fmt: skip


def test_a_wrong_recovery_scores_below_one(folder, tmp_path, capsys):
    out = tmp_path / "recovered.jsonl"
    run("invert", folder / "states.safetensors", "--output", out)
    rows = lines(out)
    rows[0]["token_ids"][3] += 1
    rows[0]["text"] = rows[0]["text"].replace("truth", "lie")
    out.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    capsys.readouterr()
    assert run("score", out, "--reference", folder / "prompts.jsonl", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["exact_match"] == pytest.approx(1 - 1 / len(TEXTS))
    tokens = sum(len(row["token_ids"]) for row in rows.values())
    assert result["token_accuracy"] == pytest.approx(1 - 1 / tokens, abs=1e-6)
    assert 0.9 < result["similarity"] < 1


def test_states_file_holds_no_text(folder):
    data = (folder / "states.safetensors").read_bytes()
    assert b"truth" not in data
    states = open_states(folder / "states.safetensors")
    assert (len(states), states.layer, states.dtype, states.width) == (len(TEXTS), "final_norm", "float32", 256)
    assert states.lengths()[-2:] == [0, 1]


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("layer", ["final_norm", "block:1"])
def test_coarse_states(folder, tmp_path, capsys, stored, layer):
    states, out = tmp_path / "coarse.safetensors", tmp_path / "out.jsonl"
    assert run("capture", "--input", folder / "prompts.jsonl", "--output", states, "--store-dtype", stored,
               "--layer", layer, "--max-tokens", 12) == 0  # fmt: skip
    assert run("invert", states, "--output", out) == 0
    capsys.readouterr()
    run("score", out, "--reference", folder / "prompts.jsonl", "--max-tokens", 12, "--json")
    assert json.loads(capsys.readouterr().out)["exact_match"] == 1.0


def test_plain_tensors(folder, tmp_path):
    rows = open_states(folder / "states.safetensors").rows(0, 20)
    np.save(tmp_path / "one.npy", rows.numpy())
    save_file({"anything": rows}, tmp_path / "one.safetensors")
    texts = []
    for name in ("one.npy", "one.safetensors"):
        out = tmp_path / f"{name}.jsonl"
        assert run("invert", tmp_path / name, "--output", out) == 0
        texts.append(lines(out)[0]["text"])
    assert texts[0] == texts[1]
    assert TEXTS[0].startswith(texts[0])


def test_shards_make_the_whole(folder, tmp_path):
    parts = {}
    for shard in ("1/3", "2/3", "3/3"):
        out = tmp_path / f"{shard[0]}.jsonl"
        assert run("invert", folder / "states.safetensors", "--output", out, "--shard", shard) == 0
        parts |= lines(out)
    assert [parts[i]["text"] for i in range(len(TEXTS))] == TEXTS


def test_resume_after_kill(folder, tmp_path):
    """kill -9 in the middle, a half-written last line, then --resume: every text once, none lost."""
    out = tmp_path / "recovered.jsonl"
    command = [sys.executable, "-m", "invert_fast", "invert", "--model", "bundled",
               folder / "states.safetensors", "--output", out, "--strategy", "prior", "--batch-size", "1"]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and (not out.exists() or b"\n" not in out.read_bytes()):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    before = out.read_bytes()
    assert 0 < before.count(b"\n") < len(TEXTS)
    out.write_bytes(before + b'{"index": 3, "token_ids": [1, 2')
    assert run("invert", folder / "states.safetensors", "--output", out, "--resume") == 0
    assert set(before.splitlines()) < set(out.read_bytes().splitlines()), "what was found stays as it was written"
    written = [json.loads(line)["index"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert written == list(range(len(TEXTS)))
    assert [lines(out)[i]["text"] for i in range(len(TEXTS))] == TEXTS
    assert run("invert", folder / "states.safetensors", "--output", out, "--resume") == 0  # nothing left to do


def test_uncertified_is_exit_status_1(folder, tmp_path):
    rows = open_states(folder / "states.safetensors").rows(0, 6).clone()
    rows[4] = torch.randn(256, generator=torch.Generator().manual_seed(0))
    save_file({"hidden": rows}, tmp_path / "odd.safetensors")
    assert run("invert", tmp_path / "odd.safetensors", "--output", tmp_path / "out.jsonl") == 1
    row = lines(tmp_path / "out.jsonl")[0]
    assert row["first_failure"] == 4
    assert row["status"][:4] == ["certified"] * 4
    assert row["status"][4] == "not found"
    assert row["status"][5] == "after failure"


BAD_STATES = {
    "wrong width": (lambda p: save_file({"hidden": torch.zeros(3, 7)}, p), ["7 wide", "256"]),
    "NaN row": (lambda p: save_file({"hidden": torch.tensor([[0.0] * 256, [torch.nan] * 256])}, p), ["row 1", "NaN"]),
    "Inf row": (lambda p: save_file({"hidden": torch.full((1, 256), float("inf"))}, p), ["row 0", "Inf"]),
    "too long": (lambda p: save_file({"hidden": torch.zeros(1025, 256)}, p), ["1025", "1024"]),
    "integers": (lambda p: save_file({"hidden": torch.zeros(3, 256, dtype=torch.long)}, p), ["int64", "floats"]),
    "one dimension": (lambda p: save_file({"hidden": torch.zeros(256)}, p), ["[256]", "[tokens, width]"]),
    "two tensors": (lambda p: save_file({"a": torch.zeros(1, 9), "b": torch.zeros(1, 9)}, p), ["`a`", "--tensor"]),
    "offsets too far": (
        lambda p: save_file({"hidden": torch.zeros(3, 256), "offsets": torch.tensor([0, 9])}, p), ["9", "3 rows"]),
    "offsets fall": (
        lambda p: save_file({"hidden": torch.zeros(3, 256), "offsets": torch.tensor([0, 2, 1, 3])}, p), ["rise"]),
    "other model": (
        lambda p: save_file({"hidden": torch.zeros(3, 256)}, p, {"model": "llama:0123456789abcdef"}),
        ["llama:0123456789abcdef", "gpt2:"]),
    "layer of the file out of range": (
        lambda p: save_file({"hidden": torch.zeros(3, 256)}, p, {"layer": "block:9"}), ["block:9", "4 blocks"]),
    "pickle": (lambda p: torch.save(print, p), ["pickle", "never loaded", "print"]),
    "not safetensors": (lambda p: p.write_bytes(b"hello, this is not a tensor file at all"), ["safetensors"]),
    "empty file": (lambda p: p.write_bytes(b""), ["safetensors"]),
    "no file": (lambda p: None, ["does not exist"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_STATES)
def test_bad_states_are_refused(kind, tmp_path, capsys):
    make, expected = BAD_STATES[kind]
    path, out = tmp_path / "bad.safetensors", tmp_path / "out.jsonl"
    make(path)
    error = failure(capsys, "invert", path, "--output", out)
    assert all(word in error for word in expected), error
    assert not out.exists()


def test_truncated_states_are_refused(folder, tmp_path, capsys):
    data = (folder / "states.safetensors").read_bytes()
    for length in (1, 7, 8, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        assert "cut short" in failure(capsys, "invert", tmp_path / "cut.safetensors", "--output", tmp_path / "o.jsonl")


def test_object_arrays_are_never_unpickled(tmp_path, capsys):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "Python objects" in failure(capsys, "invert", tmp_path / "evil.npy", "--output", tmp_path / "o.jsonl")


def test_existing_output_is_kept(folder, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    assert "--resume" in failure(capsys, "invert", folder / "states.safetensors", "--output", out)
    assert out.read_text() == "precious"
    error = failure(capsys, "capture", "--input", folder / "prompts.jsonl", "--output", out)
    assert "exists" in error
    assert out.read_text() == "precious"


def test_resume_refuses_the_output_of_other_states(folder, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text(json.dumps({"index": 0, "token_ids": [1, 2]}) + "\n")
    error = failure(capsys, "invert", folder / "states.safetensors", "--output", out, "--resume")
    assert "text 0 of 2 tokens" in error
    out.write_text("not json\n")
    assert "line 1" in failure(capsys, "invert", folder / "states.safetensors", "--output", out, "--resume")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "17"], ["'17'", "-5 to 4"]),
        (["--layer", "block:x"], ["block:x"]),
        (["--layer", "block:1"], ["final_norm", "block:1"]),
        (["--device", "warp9"], ["warp9", "cpu"]),
    ],
)
def test_bad_options_are_refused(folder, tmp_path, capsys, arguments, expected):
    error = failure(capsys, "invert", folder / "states.safetensors", "--output", tmp_path / "o.jsonl", *arguments)
    assert all(word in error for word in expected), error
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("arguments", [["--shard", "0/2"], ["--shard", "x"], ["--batch-size", "0"],
                                       ["--max-memory", "-1"], ["--strategy", "magic"]])  # fmt: skip
def test_bad_usage_is_exit_status_2(folder, tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run("invert", folder / "states.safetensors", "--output", tmp_path / "o.jsonl", *arguments)
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_models_that_are_not_there(tmp_path, capsys):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, word in (("pickled", "never loaded"), ("empty", "config.json"), ("absent", "not a folder")):
        error = failure(capsys, "capture", "--input", tmp_path / "p.txt", "--output", tmp_path / "s.safetensors",
                        model=str(tmp_path / name)) if (tmp_path / "p.txt").write_text("a\n") else ""  # fmt: skip
        assert word in error, error
    assert not (tmp_path / "s.safetensors").exists()


def test_bad_prompts(tmp_path, capsys):
    for name, data, word in (("a.jsonl", b'{"txt": 1}\n', "line 1"), ("b.jsonl", b"{}\nnope\n", "line 1"),
                             ("c.txt", b"\xff\xfe\n", "UTF-8")):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        error = failure(capsys, "capture", "--input", tmp_path / name, "--output", tmp_path / "s.safetensors")
        assert word in error, error


def test_texts_past_the_context_are_cut_and_said(tmp_path, folder):
    (tmp_path / "long.txt").write_text("word " * 1500 + "\n")
    command = [sys.executable, "-m", "invert_fast", "capture", "--model", "bundled", "--input",
               str(tmp_path / "long.txt"), "--output", str(tmp_path / "s.safetensors")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=True)
    assert "1024 positions" in done.stderr
    assert open_states(tmp_path / "s.safetensors").lengths() == [1024]
    assert run("invert", tmp_path / "s.safetensors", "--output", tmp_path / "o.jsonl") == 0
    assert lines(tmp_path / "o.jsonl")[0]["text"] == ("word " * 1500)[: len(lines(tmp_path / "o.jsonl")[0]["text"])]


def test_help_names_every_option(capsys):
    for command in ("capture", "invert", "score", "demo"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "--" in capsys.readouterr().out
