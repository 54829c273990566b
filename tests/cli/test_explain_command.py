"""`invert-fast explain` as a user meets it."""

from __future__ import annotations

import json

from invert_fast.cli.main import main

TEXT = "The password is hunter2."


def run(*arguments) -> int:
    return main(["explain", *map(str, arguments)])


def test_a_text_is_explained_without_naming_a_model(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run(TEXT, "--html", page) == 0
    shown = capsys.readouterr().out
    assert "9 of 9 certified" in shown
    assert "“ pass”" in shown
    assert "hun" in page.read_text(encoding="utf-8")
    assert run(TEXT, "--html", page) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_file_gives_a_line_of_json_a_token(tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "日本", "")), encoding="utf-8")
    assert run("--input", prompts, "--json", "--store-dtype", "bfloat16", "--max-tokens", 4, "--near", 2) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["index"], row["position"]) for row in rows] == [(i, t) for i in (0, 1) for t in range(4)]
    assert "".join(row["token"] for row in rows[:4]) == "The password"
    assert all(row["status"] == "certified" and len(row["rivals"]) == 2 for row in rows)


def test_it_says_what_is_wanted(tmp_path, capsys):
    assert run() == 2
    assert "neither of TEXT and --input" in capsys.readouterr().err
    assert run("a", "--input", tmp_path / "x.txt") == 2
    assert "both of TEXT and --input" in capsys.readouterr().err
