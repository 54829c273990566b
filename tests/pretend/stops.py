"""What would make a host wait for its GPU, and where in our source: counted, and refused while a step is recorded."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(f"{_ROOT / folder}/" for folder in ("invert_fast", "kernels"))
_CARRIER = f"{_ROOT}/invert_fast/model/transfer.py"
_WAITING = {  # the size or the content of what these return is known to the device alone
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "mask read",
    "equal": "equal",
    "is_nonzero": "item",
    "bincount": "bincount",
}
_UNIQUE = ("_unique", "unique_")
_CHECKED = ("linalg_", "_linalg_")  # whose status is read back
_UNCHECKED = ("linalg_vector_norm", "linalg_cross", "linalg_cholesky_ex", "linalg_inv_ex", "linalg_solve_triangular")


class StopWhileRecordingError(RuntimeError):
    """As CUDA says of a capture: an operation that is not permitted while a stream is recorded."""


class Stops:
    """counts: of each (kind, place); launches: ops that a device would have run; recorded: the ops of the step that is
    being recorded, None outside of one; refused: stops that were met in one."""

    def __init__(self):
        self.counts: Counter[tuple[str, str]] = Counter()
        self.launches = 0
        self.recorded: list[tuple[Callable, tuple, dict[str, Any], Any]] | None = None
        self.refused: Counter[tuple[str, str]] = Counter()

    def note(self, kind: str) -> None:
        at = place()
        self.counts[kind, at] += 1
        if self.recorded is not None:
            self.refused[kind, at] += 1
            raise StopWhileRecordingError(f"{kind} at {at} while a step is recorded")

    @contextmanager
    def recording(self) -> Iterator[list]:
        """Within it every op is kept, and every stop refused."""
        self.recorded = made = []
        try:
            yield made
        finally:
            self.recorded = None

    def take(self) -> tuple[Counter[tuple[str, str]], int]:
        """What was counted since the last call."""
        found = self.counts, self.launches
        self.counts, self.launches = Counter(), 0
        return found


def place() -> str:
    """The innermost line of ours that is running: `engine/ledger.py:98`; of this harness's callers where none is. What
    `transfer.py` copies, it copies for another."""
    frame, outside = sys._getframe(1), "elsewhere"
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OURS) and file != _CARRIER:
            return f"{Path(file).relative_to(_ROOT).as_posix().removeprefix('invert_fast/')}:{frame.f_lineno}"
        frame = frame.f_back
    return outside


def waits(name: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """The kind of stop that an op makes on CUDA whatever its operands are, None for most. Copies between devices and
    indices from the host are not told here: they hang on where operands are."""
    if name in _WAITING:
        return _WAITING[name]
    if name == "repeat_interleave":  # whose result is as long as its operand says
        return None if kwargs.get("output_size") is not None else "repeat_interleave"
    if name.startswith(_UNIQUE):
        return "unique"
    if name.startswith(_CHECKED) and name not in _UNCHECKED:
        return "linalg"
    if name == "isin" and all(isinstance(a, Tensor) for a in args[:2]):
        few = 10 * max(1, args[0].numel()) ** 0.145  # beyond, PyTorch sorts both, and counts what is unique
        return "unique" if args[1].numel() >= few else None
    if name in ("index", "_unsafe_index"):
        return "mask read" if _masks(args[1]) else None
    if name in ("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put") and _masks(args[1]):
        number = args[2].dim() == 0 and args[2].device.type == "cpu" and len([i for i in args[1] if i is not None]) == 1
        return None if number else "mask write"  # a number from the host is written by a masked fill
    return None


def _masks(indices: Any) -> bool:
    return any(isinstance(i, Tensor) and not i.is_floating_point() and i.element_size() == 1 for i in indices)
