"""`invert-fast mend` on files, and `diagnose`, which prints the command."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from invert_fast.cli.main import main

from ..mend.edits import bundled, prose, rows_of


def run(*arguments) -> int:
    return main([*map(str, arguments)])


@pytest.fixture
def text() -> tuple[list[int], torch.Tensor]:
    ids = prose(bundled(), 0, 20)
    return ids, rows_of(bundled(), ids)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_diagnose_prints_the_command_that_certifies(text, tmp_path, capsys):
    ids, rows = text
    states, out = tmp_path / "states.safetensors", tmp_path / "recovered.jsonl"
    made = rows[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    save_file({"hidden": made.contiguous()}, states)
    assert run("diagnose", "--model", "bundled", states) == 0
    printed = capsys.readouterr().out
    (command,) = re.findall(r"^    invert-fast (.*)$", printed, re.MULTILINE)
    assert command == f"mend --model bundled {states} --output recovered.jsonl --edit order"
    assert run(*command.replace("recovered.jsonl", str(out)).split()) == 0
    (found,) = lines(out)
    assert found["token_ids"] == ids
    assert found["certified"]
    assert found["mended"]["edit"] == "order"
    assert "1 of 1 texts certified" in capsys.readouterr().out


def test_mixed_texts_come_a_line_each(text, tmp_path):
    _, rows = text
    states, out = tmp_path / "states.safetensors", tmp_path / "recovered.jsonl"
    other = prose(bundled(), 300, 8)
    mixed = torch.stack([rows[:8], rows_of(bundled(), other)], 1).flatten(0, 1)
    save_file({"hidden": torch.cat([mixed, rows[:6]]), "offsets": torch.tensor([0, 16, 22])}, states)
    assert run("mend", "--model", "bundled", states, "--edit", "mixed", "--output", out) == 0
    found = lines(out)
    assert [(line["index"], line["of"]) for line in found] == [(0, 0), (1, 0), (2, 1)]
    assert found[1]["token_ids"] == other
    assert [line["mended"]["rows"] for line in found] == [[*range(0, 16, 2)], [*range(1, 16, 2)], [*range(6)]]


def test_what_is_not_mended_exits_with_one_and_says_why(text, tmp_path, capsys):
    _, rows = text
    states, out = tmp_path / "states.safetensors", tmp_path / "recovered.jsonl"
    save_file({"hidden": torch.cat([rows[:4], rows[9:]])}, states)
    arguments = ("mend", "--model", "bundled", states, "--edit", "gap", "--output", out)
    assert run(*arguments, "--missing", "4,5,6,7,8", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["certified"] == 0
    assert "the gap at 4 has 5 rows" in said["mended"][0]
    (line,) = lines(out)
    assert line["status"][:5] == ["certified"] * 4 + ["not found"]
    assert line["mended"]["rows"] == [0, 1, 2, 3, -1, -1, -1, -1, -1, *range(4, 15)]
    assert run(*arguments) == 2
    assert "exists, expected a new file" in capsys.readouterr().err


def test_a_direction_comes_from_a_file(text, tmp_path, capsys):
    ids, rows = text
    vector = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    states, out, file = tmp_path / "s.safetensors", tmp_path / "r.jsonl", tmp_path / "direction.safetensors"
    save_file({"hidden": rows + 5 * vector}, states)
    save_file({"direction": vector}, file)
    arguments = ("--model", "bundled", states, "--output", out)
    assert run("mend", *arguments, "--edit", "order", "--direction", file) == 2
    assert "expected with 'steering' alone" in capsys.readouterr().err
    out.unlink(missing_ok=True)
    assert run("mend", *arguments, "--edit", "steering", "--direction", file) == 0
    assert "strength 5" in capsys.readouterr().out
    assert lines(out)[0]["token_ids"] == ids
