"""`invert-fast diagnose` on files: what it prints is a command that certifies."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from invert_fast.cli.main import main

from ..diagnose.captures import CAPTURES, TEXT, bundled, ids


def run(*arguments) -> int:
    return main([*map(str, arguments)])


@pytest.mark.parametrize("name", ["left-padded by 7, no position ids", "a BOS before the text, its row dropped"])
def test_a_failed_inversion_hints_and_the_command_that_is_printed_certifies(name, tmp_path, capsys, caplog):
    states, out = tmp_path / "states.safetensors", tmp_path / "recovered.jsonl"
    save_file({"hidden": CAPTURES[name][0]().contiguous()}, states)
    assert run("invert", "--model", "bundled", states, "--output", out) == 1
    out.unlink()
    capsys.readouterr()
    assert run("diagnose", "--model", "bundled", states) == 0
    printed = capsys.readouterr().out
    (command,) = re.findall(r"^    invert-fast (.*)$", printed, re.MULTILINE)
    assert run(*command.replace("recovered.jsonl", str(out)).split()) == 0
    assert json.loads(out.read_text())["text"] == bundled().decoder.decode(ids())
    table = printed[printed.index("supposed") : printed.rindex("%") + 1].splitlines()
    assert len({len(line) for line in table if not line.endswith("–")} | {len(table[1])}) == 1, "columns line up"


def test_the_hint_names_the_command(tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("invert_fast"), "propagate", True)
    states = tmp_path / "states.safetensors"
    save_file({"hidden": CAPTURES["left-padded by 7, no position ids"][0]().contiguous()}, states)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        monkeypatch.setattr("invert_fast.cli.main._configure_logging", lambda *_: None)
        assert run("invert", "--model", "bundled", states, "--output", tmp_path / "out.jsonl") == 1
    assert f"invert-fast diagnose --model bundled {states}" in caplog.text


def test_a_file_that_says_the_wrong_layer_is_overruled(tmp_path, capsys):
    prompts, states, out = tmp_path / "prompts.txt", tmp_path / "states.safetensors", tmp_path / "recovered.jsonl"
    prompts.write_text(TEXT, encoding="utf-8")
    rows = bundled().capture([TEXT])[0].hidden
    about = {"layer": "block:1", "dtype": "float32", "model": bundled().decoder.fingerprint()}
    save_file({"hidden": rows, "offsets": torch.tensor([0, len(rows)])}, states, about)
    assert run("diagnose", "--model", "bundled", states, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == "--layer final_norm --insist"
    assert found["text"] == bundled().decoder.decode(bundled().encode(TEXT)[:32])
    assert found["certified"] == 1.0
    assert [one["supposed"] for one in found["tried"]][:2] == ["as they are said to be", "another layer"]
    assert run("invert", "--model", "bundled", states, "--output", out, *found["options"].split()) == 0
    assert json.loads(out.read_text())["text"] == TEXT


def test_what_nothing_explains_exits_with_one(tmp_path, capsys):
    states = tmp_path / "states.safetensors"
    save_file({"hidden": CAPTURES["the mean, repeated"][0]().contiguous()}, states)
    assert run("diagnose", "--model", "bundled", states) == 1
    assert "all rows are equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [("--position-offset", "-1"), ("--scale", "0"), ("--scale", "units"), ("--prefix", "1,x")]
)
def test_options_that_say_nothing_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        run("invert", "--model", "bundled", "s.npy", "--output", "o", *option)
    assert option[1] in capsys.readouterr().err
