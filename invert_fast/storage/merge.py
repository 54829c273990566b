"""Outputs of shards → one recovered.jsonl, in the order of the texts."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..types import InputError
from .atomic import replacing
from .ordered import index_of
from .shards import Shard, check

_HELD = 64 << 20  # bytes of lines in memory, of all shards together


def merge(outputs: Sequence[Path], target: Path) -> tuple[int, int]:
    """Write the texts of all shards in order, whole or not at all; returns how many there are, and are certified.

    Every shard is read once, a part at a time, so neither their number nor their size matters, and is compared with its
    note on the way. Raises InputError where one is missing, there twice, unfinished, changed since, or of another run.
    """
    shards = check(outputs)
    texts = shards[0][1].texts
    each = max(1, _HELD // len(shards))
    lines = [_Lines(output, shard, each) for output, shard in shards]
    with replacing(target) as file:
        for index in range(texts):
            file.write(lines[index % len(lines)].take(index))
        for own in lines:
            own.check_end()
    return texts, sum(shard.whole.certified for _, shard in shards if shard.whole is not None)


class _Lines:
    """The lines of a shard, read `each` bytes and the rest of a line at a time; open only meanwhile."""

    def __init__(self, output: Path, shard: Shard, each: int):
        self.output, self.shard, self.each = output, shard, each
        self._at, self._digest, self._read = 0, hashlib.sha256(), deque[bytes]()

    def take(self, index: int) -> bytes:
        """The next line, which is of this text."""
        if not self._read:
            self._read.extend(self._more())
        try:
            line = self._read.popleft()
            if not line.endswith(b"\n") or index_of(line) != index:
                raise ValueError
        except (IndexError, ValueError, KeyError, TypeError):
            raise self._changed(f"text {index} is not where it was") from None
        return line

    def check_end(self) -> None:
        """Nothing is left, and what was read is what was written."""
        whole = self.shard.whole
        assert whole is not None
        if self._read or self._digest.hexdigest() != whole.sha256:
            raise self._changed("its SHA-256 is another")

    def _more(self) -> Iterator[bytes]:
        with self.output.open("rb") as file:
            file.seek(self._at)
            for line in file.readlines(self.each):
                self._at += len(line)
                self._digest.update(line)
                yield line

    def _changed(self, how: str) -> InputError:
        return InputError(
            f"{self.output} (shard {self.shard.name}) is not what its note says ({how}): it was edited or mixed up, "
            "copy it again or run the shard again"
        )
