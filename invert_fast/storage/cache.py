"""The cache folder: what was measured or fitted once for a model and layer. Safe to delete at any time.

`INVERT_FAST_CACHE` names it (default `~/.cache/invert_fast`); `INVERT_FAST_CACHE=off` keeps nothing.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .atomic import write_whole
from .json_text import parse


def folder() -> Path | None:
    """The cache folder, or None when caching is off."""
    chosen = os.environ.get("INVERT_FAST_CACHE", "~/.cache/invert_fast")
    return None if chosen == "off" else Path(chosen).expanduser()


def key(identity: tuple[str, ...], kind: str, *details: str) -> str:
    """File name that is equal only for equal identity (`Decoder.identity`), kind and details."""
    parts = [*identity, kind, *details]
    return f"{kind}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:24]}"


def path(name: str) -> Path | None:
    """Where the entry is, None when there is none."""
    root = folder()
    return root / name if root is not None and (root / name).is_file() else None


def kept(where: Path | str | None) -> str:
    """In words: where an entry is, if it is."""
    return f"kept in {where}" if where else "kept nowhere: INVERT_FAST_CACHE is off, or cannot be written"


def read_json(name: str) -> dict | None:
    """A stored JSON object; None when absent or damaged (it is then measured again)."""
    found = path(name)
    if found is None:
        return None
    try:
        value = parse(found.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write(name: str, data: bytes) -> None:
    """Store an entry whole or not at all; a folder that cannot be written to is no error, only a cache missed."""
    root = folder()
    if root is None:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_whole(root / name, data)
    except OSError:
        return
