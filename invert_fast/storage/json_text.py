"""JSON that others wrote: whatever is wrong with it is a ValueError, however deep it is nested."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes, finite: bool = True) -> Any:
    """What JSON says. ValueError for what is none, for NaN and Infinity (which JSON has not, unless `finite` is false),
    and for brackets in brackets beyond what Python can follow."""
    try:
        return json.loads(text, parse_constant=_no_number if finite else None)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
