"""Prompts in: .txt, one text a line, or .jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from ..types import InputError


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """One text a line (.txt; empty lines are empty texts), or one JSON object with a `text` a line (.jsonl)."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected a .txt or .jsonl file of prompts")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also cut at form feeds
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error
    lines = (
        [line for line in lines if line.strip()]
        if path.suffix == ".jsonl"
        else [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    )
    lines = lines[:limit]
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}), expected an object with a `text`") from error
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise InputError(f'{path}, line {number}: no `text` string in it, expected {{"text": …}}')
        texts.append(text)
    return texts
