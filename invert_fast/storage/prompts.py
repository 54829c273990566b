"""Prompts in: .txt, one text a line, or .jsonl, where a line may also be a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import InputError
from .json_text import parse


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """One text a line (.txt; empty lines are empty texts), or one JSON object with a `text` a line (.jsonl)."""
    prompts = read_chats(path, limit)
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            raise InputError(f'{path}, line {number}: no `text` string in it, expected {{"text": …}}')
    return prompts  # type: ignore[return-value]


def read_chats(path: Path, limit: int | None = None) -> list[str | list[dict[str, Any]]]:
    """As `read_prompts`, but a line may have `messages`, with a `role` and a `content` each, instead of a `text`."""
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
        return [*lines]
    texts: list[str | list[dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            value = parse(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}), expected an object with a `text`") from error
        if isinstance(value, dict) and "text" not in value and "messages" in value:
            texts.append(_messages(path, number, value["messages"]))
            continue
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise InputError(f'{path}, line {number}: no `text` string in it, expected {{"text": …}}')
        texts.append(text)
    return texts


def _messages(path: Path, number: int, given: Any) -> list[dict[str, Any]]:
    good = (
        isinstance(given, list) and given and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in given)
    )
    if not good:
        raise InputError(
            f"{path}, line {number}: `messages` are no list of messages with a role, expected "
            '[{"role": "user", "content": …}, …]'
        )
    return given
