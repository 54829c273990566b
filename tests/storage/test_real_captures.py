"""Every row of docs/states.md, run as it stands: what it says comes out does."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from invert_fast import InputError
from invert_fast.cli.main import main

DOCUMENT = (Path(__file__).parents[2] / "docs" / "states.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in re.findall(r"^\| .*`.*$", DOCUMENT, re.M)]
MEMORY, FILES = ([row for row in ROWS if len(row) == n] for n in (3, 4))


@pytest.fixture(scope="module")
def before() -> dict:
    """What stands before the tables."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
    names: dict = {}
    with torch.no_grad():
        exec(code, names)
    return names


def run(cell: str, names: dict):
    """The value of the code's last expression, if it ends with one."""
    *statements, last = ast.parse(cell.strip("`")).body
    with torch.no_grad():
        exec(compile(ast.Module(statements, []), "row", "exec"), names)
        if isinstance(last, ast.Expr):
            return eval(compile(ast.Expression(last.value), "row", "eval"), names)
    raise AssertionError("a row ends with an expression")


def begins_right(text: str, texts: list[str]) -> bool:
    """What was captured, or begins with it where more was generated."""
    return any(text.startswith(t) for t in texts)


def test_every_row_is_run():
    assert len(MEMORY) + len(FILES) == len(ROWS) == DOCUMENT.count("\n| ") - 2


@pytest.mark.slow
@pytest.mark.parametrize("row", MEMORY, ids=[row[0] for row in MEMORY])
def test_what_is_in_memory(before, row):
    _, code, wanted = row
    torch.manual_seed(0)
    if wanted.startswith("refused: "):
        with pytest.raises(InputError, match=re.escape(wanted.removeprefix("refused: "))):
            run(code, dict(before))
        return
    found = run(code, dict(before))
    assert wanted == f"{sum(r.certified for r in found)} of {len(found)} certified"
    assert all(begins_right(r.text, before["texts"]) for r in found if r.certified)


@pytest.mark.slow
@pytest.mark.parametrize("row", FILES, ids=[row[0] for row in FILES])
def test_what_is_in_files(before, row, tmp_path, monkeypatch, capsys):
    _, code, given, wanted = row
    if "pyarrow" in code and not importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is not installed: pip install 'invert_fast[arrow]'")
    folder = tmp_path / "states"
    folder.mkdir()
    monkeypatch.chdir(folder)
    run(code, dict(before))
    capsys.readouterr()
    status = main(["invert", "--model", "bundled", *given.strip("`").split(), "--output", str(tmp_path / "out.jsonl")])
    if wanted.startswith("refused: "):
        assert status == 2
        assert wanted.removeprefix("refused: ") in capsys.readouterr().err
        return
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert wanted == f"{sum(r['certified'] for r in found)} of {len(found)} certified"
    assert all(begins_right(r["text"], before["texts"]) for r in found if r["certified"])
