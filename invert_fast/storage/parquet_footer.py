"""How many numbers the columns of a Parquet file say that they have, from its footer alone.

pyarrow gives them as well, but ends the process by an abort where a column's part of the footer is damaged: an
exception of C++ that it does not declare. The footer is a struct in Thrift's compact protocol, of which only this is
read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_MARK = b"PAR1"
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_NUMBERS = (4, 5, 6)
_DEEPEST = 32
# FileMetaData: row groups (4), of each its columns (1), of each its metadata (3): path (3) and number of values (5)
_WANTED = {4: [{1: [{3: {3: [True], 5: True}}]}]}


def values_by_column(path: Path) -> list[tuple[str, int]]:
    """Of each column of each row group its path (`states.list.element`) and the number of its values. ValueError for a
    footer that is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != _MARK or length > size - 8:
            raise ValueError("its footer is not there")
        file.seek(size - 8 - length)
        footer = _Struct(file.read(length)).value(_STRUCT, _WANTED, 0)
    found = []
    for group in footer.get(4, []):
        for column in group.get(1, []):
            about = column.get(3, {})
            parts, count = about.get(3), about.get(5)
            named = isinstance(parts, list) and all(isinstance(part, bytes) for part in parts)
            if not named or not isinstance(count, int):
                raise ValueError("a column of its footer has no name, or no number of values")
            found.append((".".join(part.decode("utf-8", "replace") for part in parts), count))
    return found


class _Struct:
    """data, read from `at` on. What is wanted of a struct is a dict by number of the field, of a list a list of one."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def value(self, kind: int, wanted: Any, depth: int) -> Any:
        """The value that comes next; None where it is skipped."""
        if depth > _DEEPEST:
            raise ValueError("its footer is nested too deep")
        if (isinstance(wanted, list) and kind not in (_LIST, _SET)) or (isinstance(wanted, dict) and kind != _STRUCT):
            raise ValueError("its footer has no columns where they should be")
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._take(1)[0]
        if kind in _NUMBERS:
            number = self._varint()
            return (number >> 1) ^ -(number & 1)
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            return self._list(wanted[0] if isinstance(wanted, list) else None, depth)
        if kind == _MAP:
            return self._map(depth)
        if kind == _STRUCT:
            return self._struct(wanted if isinstance(wanted, dict) else {}, depth)
        raise ValueError(f"its footer has a field of kind {kind}")

    def _struct(self, wanted: dict[int, Any], depth: int) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while (head := self._take(1)[0]) != 0:
            number = number + (head >> 4) if head >> 4 else self.value(_NUMBERS[0], None, depth)
            value = self.value(head & 15, wanted.get(number), depth + 1)
            if number in wanted:
                found[number] = value
        return found

    def _list(self, wanted: Any, depth: int) -> list[Any]:
        head = self._take(1)[0]
        count, kind = head >> 4, head & 15
        count = self._varint() if count == 15 else count
        self._check(count)
        found = []
        for _ in range(count):
            value = self._element(kind, wanted, depth)
            if wanted is not None:
                found.append(value)
        return found

    def _map(self, depth: int) -> None:
        count = self._varint()
        self._check(count)
        kinds = self._take(1)[0] if count else 0
        for _ in range(count):
            self._element(kinds >> 4, None, depth)
            self._element(kinds & 15, None, depth)

    def _element(self, kind: int, wanted: Any, depth: int) -> Any:
        """Of a list or a map, where a truth value is a byte: nothing that is counted takes none."""
        return self.value(_BYTE if kind in (_TRUE, _FALSE) else kind, wanted, depth + 1)

    def _check(self, count: int) -> None:
        """Whatever is counted has a byte at least."""
        if count > len(self.data) - self.at:
            raise ValueError("its footer is cut short")

    def _take(self, count: int) -> bytes:
        self._check(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._take(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("its footer has a number of more than 64 bits")
