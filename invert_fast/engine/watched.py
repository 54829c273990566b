"""A proposer, watched: it proposes, and what the verdict rests on is not its to write.

Whoever wrote a strategy, what it proposes is verified. What it could break is what that rests on: the states that are
asked for, the tokens that were committed, what was tried. Tensors count their changes, so that looking costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..model.transfer import told
from ..types import InputError
from .protocol import Behind, Block, Context, Learner, Observer, Run, Strategy, Working

_OF_LANES = ("targets", "target_length", "ids", "length", "text")
_OF_ATTEMPTS = (
    *("tried", "tries", "near", "near_ids", "near_rank", "near_state", "near_plain"),
    *("rivals", "rivals_due", "nothing_left", "failed"),
)


class Watched:
    """The proposer of a strategy. Raises InputError, by the strategy's name, where it writes what is the engine's, or
    proposes what cannot be verified."""

    def __init__(self, strategy: Strategy, context: Context):
        self.strategy, self.context = strategy, context
        self.lanes, self.attempts, self.tolerances = context.lanes, context.attempts, context.tolerances
        self.foreign = _is_foreign(strategy)
        with self._nothing_written():
            self.proposer = strategy.bind(context)
        self.observes = isinstance(self.proposer, Observer)

    def begin(self, slots: Tensor) -> None:
        with self._nothing_written():
            self.proposer.begin(slots)

    def propose(self, slots: Tensor) -> Sequence[Run | Block | Working]:
        with self._nothing_written():
            items = self.proposer.propose(slots)
        if self.foreign:
            for item in items:  # wherever it made them
                _told(item)
            self._check(items, slots)
        return items

    def observe(self, behind: Behind) -> None:
        if isinstance(self.proposer, Observer):
            with self._nothing_written():
                self.proposer.observe(behind)

    def finished(self, slots: Tensor, certified: Tensor) -> None:
        if isinstance(self.proposer, Learner):
            with self._nothing_written():
                self.proposer.finished(slots, certified)

    def ended(self) -> None:
        if isinstance(self.proposer, Learner):
            self.proposer.ended()

    @contextmanager
    def _nothing_written(self) -> Iterator[None]:
        before = self._tables()
        yield
        context = self.context
        own = context.lanes is self.lanes and context.attempts is self.attempts
        if not own or context.tolerances is not self.tolerances:
            raise InputError(f"strategy '{self.strategy.name}' put something else into its context: it may only look")
        for was, now in zip(before, self._tables(), strict=True):
            if was != now:
                raise InputError(
                    f"strategy '{self.strategy.name}' wrote to {now[0]}, which the engine alone does: it may only look "
                    "there, and propose"
                )

    def _tables(self) -> list[tuple[str, int, int]]:
        found = [(f"lanes.{name}", getattr(self.lanes, name)) for name in _OF_LANES]
        found += [(f"attempts.{name}", getattr(self.attempts, name)) for name in _OF_ATTEMPTS]
        return [(name, id(table), 0 if table.is_inference() else table._version) for name, table in found]

    def _check(self, items: Sequence[Run | Block | Working], asked: Tensor) -> None:
        """Raises InputError for what is no proposal for these lanes."""
        for item in items:
            self._check_item(item, asked)
        named = torch.cat([item.slots for item in items]) if items else asked[:0]
        if len(named.unique()) < len(named):
            raise self._refused(f"something for lanes {named.tolist()}", "each lane once, in one item")

    def _check_item(self, item: Run | Block | Working, asked: Tensor) -> None:
        kind = type(item).__name__
        if not isinstance(item, (Run, Block, Working)):
            raise self._refused(f"a {kind}", "a Run, a Block or Working (invert_fast.extend)")
        slots = item.slots
        if slots.dim() != 1 or not _whole(slots) or not bool(torch.isin(slots, asked).all()):
            raise self._refused(f"a {kind} for lanes {slots.tolist()}", f"some of {asked.tolist()}")
        if isinstance(item, Working):
            return
        ids, size = item.ids, self.context.vocabulary.size
        if ids.dim() != 2 or not _whole(ids) or len(ids) != len(slots) or not ids.shape[1]:
            raise self._refused(f"a {kind} of ids {list(ids.shape)} {ids.dtype}", f"int64 [{len(slots)}, 1 or more]")
        least = 0 if isinstance(item, Run) else -1
        if ids.numel() and not least <= int(ids.min()) <= int(ids.max()) < size:
            raise self._refused(f"a {kind} of ids {int(ids.min())} to {int(ids.max())}", f"{least} to {size - 1}")
        if isinstance(item, Run):
            self._check_counts(item)

    def _check_counts(self, run: Run) -> None:
        left = self.lanes.target_length[run.slots] - self.lanes.length[run.slots]
        most = left.clamp_max(run.ids.shape[1])
        fits = run.counts.shape == most.shape and _whole(run.counts)
        if not fits or not bool(((run.counts >= 1) & (run.counts <= most)).all()):
            raise self._refused(f"a Run of counts {run.counts.tolist()}", f"1 to {most.tolist()}: what a text has left")

    def _refused(self, what: str, wanted: str) -> InputError:
        return InputError(f"strategy '{self.strategy.name}' proposes {what}, expected {wanted}")


def _told(item: Run | Block | Working) -> None:
    for name in ("slots", "ids", "counts"):
        if isinstance(table := getattr(item, name, None), Tensor):
            setattr(item, name, told(table)[0])


def _whole(tensor: Tensor) -> bool:
    return tensor.dtype == torch.int64


def _is_foreign(strategy: Strategy) -> bool:
    """Whether it, or a part of it, comes from another package."""
    parts = getattr(strategy, "strategies", ())
    ours = type(strategy).__module__.partition(".")[0] == __name__.partition(".")[0]
    return not ours or any(map(_is_foreign, parts))
