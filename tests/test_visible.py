"""What others wrote is shown, never acted on: in errors, in the log, and in all that the commands print."""

from __future__ import annotations

import ast
import json
import logging
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from invert_fast import InputError
from invert_fast.cli import main as command_line
from invert_fast.cli.main import main
from invert_fast.cli.terminal import Formatter
from invert_fast.storage.visible import visible

CLI = Path(command_line.__file__).parent
EVIL = "\x1b]0;owned\x07\x1b[2J\u202etxt.exe\u2066\x9b31m\r\nfine\u200b"


def acts(text: str, lines: bool = True) -> list[str]:
    """The characters that a terminal would not simply draw."""
    drawn = "\n\t" if lines else ""
    return [c for c in text if c not in drawn and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


@given(st.text(st.characters(codec=None, exclude_categories=())), st.booleans())
def test_what_is_shown_only_shows(text, lines):
    shown = visible(text, lines=lines)
    assert not acts(shown, lines)
    assert visible(shown, lines=lines) == shown
    assert shown.encode().decode() == shown
    assert len(visible(text, most=5)) <= 5 * len("\\U0010ffff") + len("… and 1,000,000,000 more characters")
    if not acts(text, lines):
        assert shown == text


def test_letters_spaces_and_signs_of_all_scripts_stay_as_they_are():
    for text in (
        "naïve “quotes” — 5\u00a0€",
        "明天\u3000下午",
        "Сегодня",
        "שלום",
        "مرحبا",
        "😅🇫🇷",
        "e\u0301",
        "C:\\new",
    ):
        assert visible(text) == text
    assert visible(EVIL).startswith("\\x1b]0;owned\\x07\\x1b[2J\\u202etxt.exe\\u2066\\x9b31m\\r\\nfine\\u200b")
    assert visible("a\tb\nc\x85", lines=True) == "a\tb\nc\\x85"
    assert visible("12345678", most=3) == "123… and 5 more characters"


def test_an_error_is_one_harmless_line_however_it_was_made():
    error = InputError(f"there is no tensor `{EVIL}` in it\n" + "x" * 100_000)
    assert not acts(str(error), lines=False)
    assert len(str(error)) < 3000


@pytest.mark.parametrize(
    "where", ["tensor names", "layer", "model", "a file's name", "a column of a folder", "prompts"]
)
def test_the_command_line_shows_names_in_files(tmp_path, capsys, where):
    rows, folder = torch.zeros(2, 256), tmp_path / "states"
    folder.mkdir()
    path, out = folder / "a.safetensors", ["--output", str(tmp_path / "out.jsonl")]
    command = ["invert", "--model", "bundled", str(path), *out]
    if where == "tensor names":
        save_file({EVIL: rows, EVIL + "2": rows + 1}, path)
    elif where in ("layer", "model"):
        save_file({"hidden": rows}, path, {where: EVIL})
    elif where == "a file's name":
        path = folder / f"{EVIL}.safetensors"
        path.write_bytes(b"no tensors at all")
        command = ["invert", "--model", "bundled", str(folder), *out]
    elif where == "a column of a folder":
        save_file({EVIL: rows}, path)
        command += ["--tensor", EVIL + "?"]
    else:
        path = folder / f"{EVIL}.jsonl"
        path.write_text(json.dumps({EVIL: 1}))
        command = ["capture", "--model", "bundled", "--input", str(path), *out]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "owned" in said.err
    assert not acts(said.out + said.err)


def test_usage_errors_and_the_log_are_shown_too(capsys):
    with pytest.raises(SystemExit):
        main(["invert", "--model", "bundled", "x", "--output", "y", "--shard", EVIL])
    error = capsys.readouterr().err
    assert "owned" in error
    assert not acts(error)
    record = logging.LogRecord("invert_fast", logging.INFO, "", 0, "%s: 3 texts certified", (EVIL,), None)
    assert not acts(Formatter("%(message)s").format(record), lines=False)


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_only_one_place_prints(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert path.name == "terminal.py" or "print" not in called, (
        "say it by `terminal.say`, which shows what others wrote"
    )
