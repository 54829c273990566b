"""What an extraction has found, line by line on disk, so that a kill costs no query that was answered.

JSON lines: a head (format, API, precision), then per prompt its hash and capabilities, intervals as they narrow, and
the end. No prompt and no key is written. A line that a kill cut short is dropped.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..storage.json_text import parse
from ..types import InputError
from .bounds import Bounds
from .capabilities import Capabilities
from .interface import Prompt

FORMAT = "invert_fast-extraction-1"


@dataclass
class Saved:
    """One prompt's part: capabilities, intervals `[n]`, the reference's own log-prob, requests spent, whether done."""

    capabilities: Capabilities
    prompt: str
    ids: list[int] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    reference_log_prob: tuple[float, float] = (-np.inf, 0.0)
    spent: int = 0

    def restore(self, bounds: Bounds) -> None:
        """The last line about a token holds."""
        for i, low, high in zip(self.ids, self.low, self.high, strict=True):
            bounds.low[i], bounds.high[i] = low, high
        bounds.reference_log_prob = self.reference_log_prob


class Progress:
    """An append-only file, flushed line by line. Raises InputError where it belongs to another extraction."""

    def __init__(self, path: Path, api: str, vocab_size: int):
        self.path, self._lock = path, threading.Lock()
        self.saved: dict[int, Saved] = {}
        head = {"format": FORMAT, "api": api, "vocab_size": vocab_size}
        keep = self._read(head) if path.exists() else 0
        self._file = path.open("r+" if path.exists() else "w", encoding="utf-8")
        self._file.seek(keep)
        self._file.truncate()
        if not keep:
            self._write(head)

    def _read(self, head: dict) -> int:
        """Take in whole lines; returns the byte at which the last of them ends."""
        data, keep = self.path.read_bytes(), 0
        for number, line in enumerate(data.split(b"\n")[:-1]):  # what follows the last newline was cut short
            try:
                row = parse(line)
                if number == 0:
                    self._check_head(row, head)
                else:
                    self._take(row)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{self.path}: line {number + 1} is no line of an extraction ({error}): give another file, or "
                    "delete it to start again"
                ) from error
            keep += len(line) + 1
        return keep

    def _check_head(self, row: dict, head: dict) -> None:
        if row != head:
            raise InputError(
                f"{self.path} belongs to {row.get('api')} with {row.get('vocab_size')} tokens, expected {head['api']} "
                f"with {head['vocab_size']}: give its API, or another file"
            )

    def _take(self, row: dict) -> None:
        index = int(row["prompt"])
        if "capabilities" in row:
            self.saved[index] = Saved(Capabilities(**row["capabilities"]), row["hash"], spent=row["spent"])
            return
        saved = self.saved[index]
        saved.ids += row["ids"]
        saved.low += row["low"]
        saved.high += row["high"]
        saved.spent = row["spent"]
        if "reference" in row:
            saved.reference_log_prob = (row["reference"][0], row["reference"][1])

    def start(self, index: int, prompt: Prompt, found: Capabilities, spent: int) -> None:
        """Note what the API was found to allow for this prompt, and the queries that took."""
        self.saved[index] = Saved(found, hash_of(prompt), spent=spent)
        self._write({"prompt": index, "hash": hash_of(prompt), "capabilities": found.as_json(), "spent": spent})

    def keep(self, index: int, ids: np.ndarray, bounds: Bounds, spent: int) -> None:
        """Intervals of these tokens, as they are now. Values keep all their digits."""
        row = {
            "prompt": index,
            "ids": ids.tolist(),
            "low": bounds.low[ids].tolist(),
            "high": bounds.high[ids].tolist(),
            "spent": spent,
        }
        if np.isfinite(bounds.reference_log_prob[0]):
            row["reference"] = list(bounds.reference_log_prob)
        self._write(row)

    def _write(self, row: dict) -> None:
        with self._lock:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def hash_of(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(list(prompt))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
