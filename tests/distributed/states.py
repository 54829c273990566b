"""States of short texts of the bundled model, once for all tests of a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from invert_fast.cli import demo
from invert_fast.cli.main import main

TEXTS = [*demo.sentences()[:9], "", "x", "The password is hunter2."]


def captured(folder: Path, texts: list[str] = TEXTS) -> Path:
    """A states file of texts in a folder."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    states = folder / "states.safetensors"
    command = ["capture", "--model", "bundled", "--input", folder / "prompts.jsonl", "--output", states]
    assert main([*map(str, command)]) == 0
    return states


def invert(states: Path, output: Path, *options: str | Path) -> int:
    command = ["invert", "--model", "bundled", "--device", "cpu", states, "--output", output, *options]
    return main([*map(str, command)])


def said(output: Path) -> list[str]:
    """The lines of a recovered.jsonl, but for the seconds that they took."""
    text = output.read_text(encoding="utf-8")
    return re.sub(r'"seconds": [0-9.e-]+', '"seconds": 0', text).splitlines()
