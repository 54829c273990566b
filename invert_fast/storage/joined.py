"""Several sources of states as one: the files of a folder, or the tensors of a file that each are a text."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from ..types import States


class Source(Protocol):
    """Texts of states, read when asked for. Any index is a text's; `layer` is used where the source names none."""

    def lengths(self) -> list[int]: ...

    def states(self, index: int, layer: int | str) -> States: ...

    def check_finite(self, texts: Sequence[int] | None = None) -> None:
        """InputError for NaN and Inf, by row, before any work is done. texts: of these alone."""
        ...

    def head(self, layer: int | str) -> States:
        """No rows, but all that is said of them: what can be checked before any work."""
        ...

    def without_model(self) -> Source:
        """The same, its fingerprint disregarded because the caller insists."""
        ...


@dataclass(frozen=True)
class Joined:
    """Sources one after the other, each with a name."""

    parts: Sequence[Source]
    names: Sequence[str]

    @cached_property
    def starts(self) -> list[int]:
        """The first text of each source, and the one after the last."""
        return list(itertools.accumulate((len(part.lengths()) for part in self.parts), initial=0))

    def part(self, index: int) -> int:
        """Which source a text is of."""
        return bisect_right(self.starts, index) - 1

    def lengths(self) -> list[int]:
        return [n for part in self.parts for n in part.lengths()]

    def states(self, index: int, layer: int | str) -> States:
        which = self.part(index)
        return self.parts[which].states(index - self.starts[which], layer)

    def check_finite(self, texts: Sequence[int] | None = None) -> None:
        own: dict[int, list[int]] = {}
        for index in texts or ():
            own.setdefault(which := self.part(index), []).append(index - self.starts[which])
        for which, part in enumerate(self.parts):
            if texts is None or which in own:
                part.check_finite(own.get(which))

    def head(self, layer: int | str) -> States:
        return self.parts[0].head(layer)

    def without_model(self) -> Joined:
        return Joined([part.without_model() for part in self.parts], self.names)


def parts_of(source: Source) -> list[tuple[str | None, Source]]:
    """The sources that one consists of, each with its name if it has one."""
    return list(zip(source.names, source.parts, strict=True)) if isinstance(source, Joined) else [(None, source)]


def natural(name: str) -> list[Any]:
    """A key that sorts numbers in names by their value: part2 before part10."""
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", name)]
