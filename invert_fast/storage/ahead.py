"""Texts that are read while those before them are worked on, for a device that would wait for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Iterator[Item], Generic[Item]):
    """The items of an iterable, in order, which a thread asks for: so many that they are `most` by their `size` in all,
    or one. What it raises comes after the items before it. Close it, or go to its end."""

    def __init__(self, items: Iterable[Item], size: Callable[[Item], int], most: int):
        self._items, self._size, self._most = iter(items), size, most
        self._ready: deque[Item] = deque()
        self._held, self._ended, self._error = 0, False, None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="invert_fast: read ahead", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                item = self._ready.popleft()
                self._held -= self._size(item)
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Ask for nothing more."""
        with self._changed:
            self._ended = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._held < self._most or self._ended)
                    if self._ended:
                        return
                    self._ready.append(item)
                    self._held += self._size(item)
                    self._changed.notify_all()
        except BaseException as raised:  # whatever it is, it is told to who asks
            error = raised
        finally:
            with self._changed:
                self._ended, self._error = True, error
                self._changed.notify_all()
