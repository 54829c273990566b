"""What the commands say, on stdout, on stderr and in the log: never a character that the terminal would act on.

`print` stands nowhere else in this folder: names in files and recovered text are the words of others.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import IO, Any

from ..storage.visible import visible


def say(text: str) -> None:
    """Text for people, of one line or several."""
    print(visible(text, lines=True), flush=True)


def say_json(value: Any) -> None:
    """A line for programs: all of it, with everything beyond ASCII escaped."""
    print(json.dumps(value).replace("\x7f", "\\u007f"))


def complain(text: str) -> None:
    """One line on stderr, of what went wrong."""
    print(f"invert-fast: {visible(text)}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Errors of usage quote what was typed, which may be a file's name."""

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        super()._print_message(visible(message, lines=True), file)


class Formatter(logging.Formatter):
    """One line a record; tracebacks keep theirs."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=bool(record.exc_info))
