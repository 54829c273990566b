"""What is known of every position of the texts now in the lanes, and its hand-over as `Recovery` objects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..model.lanes import Lanes, Span
from ..model.transfer import picked, told_one
from ..model.vocabulary import Vocabulary
from ..types import Cost, Recovery, Spelling, Status
from .attempts import Attempts
from .posteriors import Posteriors
from .tolerances import Tolerances
from .trace import Traces

_NAMED = 4  # tokens of near rows that a loud position is ambiguous with, where nobody tried any


class Ledger:
    """Arrays `[S, M]` beside the lanes' ids, on the host: residual, margin, status, error, rank, steps, runners-up;
    seconds `[S]`."""

    def __init__(self, lanes: Lanes, attempts: Attempts, vocabulary: Vocabulary, tolerances: Tolerances):
        shape = lanes.slots, lanes.max_len
        self.lanes, self.attempts, self.vocabulary, self.tolerances = lanes, attempts, vocabulary, tolerances
        self.residual, self.margin = torch.zeros(shape), torch.zeros(shape)
        self.status = torch.full(shape, int(Status.NOT_FOUND), dtype=torch.long)
        self.error = torch.ones(shape, dtype=torch.float64)
        self.rank = torch.zeros(shape, dtype=torch.long)
        self.steps = torch.zeros_like(self.rank)
        self.seconds = torch.zeros(lanes.slots)
        self.traces, self.posteriors = Traces(), Posteriors()
        self.alternatives: dict[tuple[int, int], list[int]] = {}

    def clear(self, slots: Tensor) -> None:
        """These lanes start a new text: nothing is known of it, and nothing of the one before holds."""
        self.status.index_fill_(0, slots, int(Status.NOT_FOUND))
        self.error.index_fill_(0, slots, 1.0)
        self.seconds.index_fill_(0, slots, 0)
        self.attempts.failed.index_fill_(0, slots, False)
        self.attempts.loudest.index_fill_(0, slots, 0.0)

    def forget(self, slots: Sequence[int]) -> None:
        """The texts in these lanes are given up."""
        for slot in slots:
            self.traces.drop(slot)
            self.posteriors.drop(slot)
        gone = set(slots)
        self.alternatives = {at: ids for at, ids in self.alternatives.items() if at[0] not in gone}

    @contextmanager
    def timed(self, slots: Tensor) -> Iterator[None]:
        """Charge the time spent inside to the texts of these lanes, in equal shares."""
        start = time.perf_counter()
        yield
        self.seconds[slots] += (time.perf_counter() - start) / len(slots)

    def write(
        self,
        slots: Tensor,
        counts: Tensor,
        residual: Tensor,
        margin: Tensor,
        status: Tensor,
        error: Tensor,
        rank: Tensor | None = None,
    ) -> Span:
        """Record the first `counts [b]` of the next positions of each lane: `[b, K]` tables. Call before the commit.
        Returns where in the lanes they are."""
        span = self.lanes.span(slots, counts, residual.shape[1])
        to, of, _ = span
        self.residual[to] = residual[of].nan_to_num()  # nothing tried: the largest number there is
        self.margin[to] = margin[of].nan_to_num()
        self.status[to] = status[of]
        self.error[to] = error[of].masked_fill(status[of] != Status.CERTIFIED, 1.0)
        self.rank[to] = 0 if rank is None else rank[of]
        self.steps[to] = 0
        first = slots, self.lanes.length[slots].clamp_max(self.lanes.max_len - 1)
        self.steps[first] = torch.where(counts > 0, self.attempts.steps[slots], self.steps[first])
        return span

    def confirm(self, slots: Tensor, positions: Tensor, status: Tensor, margin: Tensor, error: Tensor) -> None:
        """The rivals of these committed positions were tried."""
        self.status[slots, positions], self.margin[slots, positions] = status, margin
        self.error[slots, positions] = error.masked_fill(status != Status.CERTIFIED, 1.0)

    def write_alternatives(self, slots: Tensor, within: Tensor) -> None:
        """Remember for these lanes' next position the tried ids whose residual is at most `within [b]`."""
        near = (self.attempts.near[slots] <= within[:, None]).tolist()
        rows = zip(
            slots.tolist(), self.lanes.length[slots].tolist(), near, self.attempts.near_ids[slots].tolist(), strict=True
        )
        for slot, position, close, ids in rows:
            self.alternatives[slot, position] = [i for i, c in zip(ids, close, strict=True) if c and i >= 0]

    def take(self, slots: Tensor) -> list[tuple[int, Recovery]]:
        """The finished texts of these lanes, as `(text index, Recovery)`."""
        if not len(slots):
            return []
        lanes = self.lanes
        columns_of_cost = lanes.forward_tokens, lanes.backward_tokens, self.seconds, *lanes.parts.unbind(1)
        columns_of_lane = lanes.text, lanes.target_length, *columns_of_cost
        about = torch.stack([slots.double(), *(column[slots].double() for column in columns_of_lane)], 1).tolist()
        counts = [int(row[2]) for row in about]
        lane, position = _places(slots, lanes.target_length[slots])
        residual, rows = self.residual[lane, position], picked(lanes.targets, lane, position)
        norm = told_one(torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64))
        power = norm.square() / lanes.targets.shape[-1]
        tolerance = self.tolerances.plain_tolerance(position)
        tables = (
            lanes.ids[lane, position],
            residual,
            residual.double().square() * power,  # MSE = residual² ‖h‖² / D
            self.margin[lane, position],
            self.status[lane, position].to(torch.int8),
            self.rank[lane, position],
            self.steps[lane, position],
            tolerance.double().square() * power,
            self.error[lane, position],
        )
        ends = np.cumsum(counts)[:-1]
        columns = [np.split(table.numpy(), ends) for table in tables]  # one row a text, no copy
        found, precision = [], _precision(lanes)
        tokenizer = lanes.decoder.tokenizer
        spelling = None if tokenizer is None else Spelling(tokenizer)
        for (slot, text, _, forward, backward, seconds, *parts), rows in zip(
            about, zip(*columns, strict=True), strict=True
        ):
            ids, _, loss, _, status, *_, ceiling, error = rows
            posterior, believed = self.posteriors.take(int(slot), ids)
            recovery = Recovery(
                *rows[:-2],
                loss_ceiling=ceiling,
                error_bound=error,
                text=lanes.decoder.decode(ids.tolist()),
                alternatives=self._alternatives(int(slot), ids, status, believed),
                cost=Cost(int(forward), int(backward), seconds, *map(int, parts)),
                precision=precision,
                trace=self.traces.take(int(slot), ids, loss, ceiling, self.vocabulary.embedding),
                spelling=spelling,
                posterior=posterior,
            )
            found.append((int(text), recovery))
        return found

    def _alternatives(
        self, slot: int, ids: np.ndarray, status: np.ndarray, believed: dict[int, list[int]]
    ) -> dict[int, list[int]]:
        """Per ambiguous position the other ids: those seen within reach or believed possible, and all with an equal
        embedding row."""
        others: dict[int, list[int]] = {}
        for position in np.flatnonzero(status == Status.AMBIGUOUS).tolist():
            token = int(ids[position])
            seen = [*self.alternatives.pop((slot, position), []), *believed.get(position, [])]
            if self.tolerances.level is not None and {*seen} <= {token}:  # loud noise: the nearest rows, then
                near = self.vocabulary.neighbours.of(self.lanes.ids.new_tensor([token]))[0][0, :_NAMED].tolist()
                seen = [i for i in near if i >= 0]
            same = [i for t in {token, *seen} for i in self.vocabulary.equals(t)]
            # more than are ever tried may fit as well: name the next of them
            others[position] = sorted({*same} - {token}) or self.vocabulary.next_rivals(token)
        return others


def _places(slots: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Lane and position of every token of lanes `slots [b]` with `lengths [b]` tokens."""
    start = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return slots.repeat_interleave(lengths), torch.arange(len(start)) - start


def _precision(lanes: Lanes) -> str:
    return f"{str(lanes.decoder.dtype).removeprefix('torch.')}, TF32 off"
