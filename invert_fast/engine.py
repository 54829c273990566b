"""The outer loop: strategies propose, the engine verifies, commits and records. Nothing else certifies.

What a position is called follows from three numbers: the residual r of the best token, the noise ceiling n of true
tokens, and how near any other token can come (measured where it was tried, bounded by calibration where not).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .attempts import Attempts
from .calibrate import Tolerances
from .lanes import Lanes
from .ledger import Ledger
from .model import Decoder
from .strategies.base import Behind, Block, Context, Observer, Run, Strategy, Working, served
from .types import Recovery, Status
from .vocabulary import Vocabulary

log = logging.getLogger("invert_fast")

_RUNNER_UP_FACTOR = 3.0  # a rival is out of the question beyond this many times max(noise ceiling, best residual)
_RIVALS_AT_ONCE = 32
_PLAUSIBLE_RESIDUAL, _PLAUSIBLE_RATIO = 0.5, 1.5


@dataclass
class Engine:
    """Recovers a stream of texts on `slots` lanes of up to `max_len` tokens.

    tokens_per_call bounds how many tokens one forward pass computes; running out of memory halves it and says so.
    states_dtype: precision that the states were stored in.
    """

    decoder: Decoder
    vocabulary: Vocabulary
    tolerances: Tolerances
    strategy: Strategy
    slots: int
    max_len: int
    tokens_per_call: int
    states_dtype: str = "float32"

    def run(self, texts: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Recovery]]:
        """`(index, hidden [T, D])` in, `(index, Recovery)` out, in the order they are finished."""
        source = iter(texts)
        self.lanes = Lanes(self.decoder, self.slots, self.max_len)
        self.attempts = Attempts(self.slots, self.vocabulary.size, self.decoder.width, self.decoder.device)
        self.ledger = Ledger(self.lanes, self.attempts, self.vocabulary, self.tolerances)
        self.proposer = self.strategy.bind(
            Context(
                self.decoder,
                self.vocabulary,
                self.tolerances,
                self.lanes,
                self.attempts,
                self.ledger.traces,
                self.states_dtype,
            )
        )
        self._refill(source)
        while True:
            done = self.lanes.finished()
            if len(done):
                taken = self.ledger.take(done)
                self.lanes.release(done)
                self._refill(source)
                yield from taken
                continue  # a text of no tokens is finished already
            active = self.lanes.active()
            if not len(active):
                return
            with self.ledger.timed(active):
                self._step(active)

    @torch.no_grad()
    def _refill(self, source: Iterator[tuple[int, Tensor]]) -> None:
        """Put the next texts into the idle lanes."""
        idle = self.lanes.idle()
        items = list(itertools.islice(source, len(idle)))
        if not items:
            return
        started = idle[: len(items)]
        self.lanes.load(started, [index for index, _ in items], [rows for _, rows in items])
        self.ledger.clear(started)
        with self.ledger.timed(started):
            self.proposer.begin(started)

    @torch.no_grad()
    def _step(self, active: Tensor) -> None:
        """One round: every active lane gets one unit of work, or its position is settled with what is known."""
        due = self.attempts.rivals_due[active]
        asking = active[~due]
        items = self.proposer.propose(asking) if len(asking) else []
        exhausted = asking[~served(items, asking)]
        if bool(due.any()):
            items = [*items, self._rivals(active[due])]
        for item in items:
            if not isinstance(item, Working):
                self._work(item)
        if len(exhausted):
            self._settle(exhausted)

    def _work(self, item: Run | Block) -> None:
        """Verify one item in as many calls as memory asks for. What a cut leaves over is proposed again later."""
        start = 0
        while start < len(item.slots):
            columns = min(item.ids.shape[1], max(2, self.tokens_per_call))  # 2: a rival needs the best beside it
            rows = max(1, self.tokens_per_call // columns)
            slots, ids = item.slots[start : start + rows], item.ids[start : start + rows, :columns]
            try:
                if isinstance(item, Run):
                    self._verify_run(Run(slots, ids, item.counts[start : start + rows].clamp_max(columns)))
                else:
                    self._verify_block(Block(slots, ids))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or ids.numel() <= 2:
                    raise
                self.tokens_per_call = max(2, ids.numel() // 2)
                log.warning(
                    "out of memory: going on with %d tokens a call (--max-memory sets less from the start)",
                    self.tokens_per_call,
                )
                continue
            start += rows

    def _verify_run(self, run: Run) -> None:
        """One causal pass: everything before the first mismatch is certified by it."""
        slots, ids = run.slots, run.ids
        b, K = ids.shape
        hidden, target = self.lanes.draft(slots, ids), self.lanes.rows(slots, K)
        step = torch.arange(K, device=ids.device)
        position = self.lanes.length[slots][:, None] + step
        residual = _comparable(ops.residuals(hidden.flatten(0, 1)[:, None], target.flatten(0, 1)).view(b, K))
        noise, tolerance, slope = self.tolerances.at(position)
        bound = slope * self.vocabulary.separation[ids]  # no other token comes nearer than this
        alone = bound > residual + _RUNNER_UP_FACTOR * torch.maximum(noise, residual)
        single = self.vocabulary.class_size[ids] == 1
        certified = (residual <= tolerance) & alone & single
        ambiguous = (residual <= tolerance) & alone & ~single
        nearest = (residual > tolerance) & (residual < bound / 2)  # nearer than half-way to anything else
        failed = self.attempts.failed[slots][:, None]
        status = torch.where(nearest, int(Status.BEST_MATCH), int(Status.AFTER_FAILURE))
        status = torch.where(ambiguous, int(Status.AMBIGUOUS), status)
        status = torch.where(certified, int(Status.CERTIFIED), status)
        status = status.masked_fill(failed, int(Status.AFTER_FAILURE))
        meant = step < run.counts[:, None]
        good = (certified | ambiguous | nearest | failed) & meant
        counts = good.int().cumprod(-1).sum(-1)
        self.ledger.write(slots, counts, residual, (bound - residual).clamp_min(0), status)
        rows = torch.arange(b, device=ids.device)
        self.lanes.commit(slots, ids, counts, rows)
        self.attempts.reset(slots[counts > 0])
        stopped = counts < run.counts
        if bool(stopped.any()):
            at = counts[stopped][:, None]
            self._note(
                slots[stopped],
                ids[stopped].gather(1, at),
                residual[stopped].gather(1, at),
                hidden[rows[stopped], counts[stopped]][:, None],
            )
            if isinstance(self.proposer, Observer):
                at, column = ((step > counts[:, None]) & meant & stopped[:, None]).nonzero(as_tuple=True)
                near = (residual < bound)[at, column]
                token, behind = ids[at, column], position[at, column]
                self.proposer.observe(Behind(slots[at], behind, token, (at, column), hidden, near))

    def _note(self, slots: Tensor, ids: Tensor, residual: Tensor, hidden: Tensor) -> None:
        """Remember verified candidates of this position; ask for rivals when the best fits but may not be alone."""
        self.attempts.note(slots, ids, residual, hidden)
        best = self.attempts.near[slots, 0]
        _, tolerance, _ = self.tolerances.at(self.lanes.length[slots])
        self.attempts.rivals_due[slots] = best <= tolerance

    def _verify_block(self, block: Block) -> None:
        """One fan-out over alternatives for the next token of each lane; lanes whose answer is clear move on."""
        slots, ids = block.slots, block.ids
        hidden = self.lanes.fan_out(slots, self.decoder.embed(ids.clamp_min(0)))
        residual = _comparable(ops.residuals(hidden, self.lanes.target(slots)))
        self._note(slots, ids, residual, hidden)
        best, token = self.attempts.near[slots, 0], self.attempts.near_ids[slots, 0]
        noise, tolerance, slope = self.tolerances.at(self.lanes.length[slots])
        bound = slope * self.vocabulary.separation[token]
        reach = _RUNNER_UP_FACTOR * torch.maximum(noise, best)
        alone = bound > best + reach
        alone |= self._rivals_tried(slots, token, (best + reach) / slope, ~alone)
        fits = best <= tolerance
        nearest = ~fits & (best < bound / 2)
        failed = self.attempts.failed[slots]
        ready = (fits & alone) | nearest | failed
        if bool(ready.any()):
            hit = ids[ready] == token[ready][:, None]
            chosen = torch.where(hit.any(-1), hit.int().argmax(-1), -1)
            self._commit_best(slots[ready], ready.nonzero().flatten(), chosen)

    def _rivals_tried(self, slots: Tensor, token: Tensor, radius: Tensor, wanted: Tensor) -> Tensor:
        """`[b]` bool: no untried token is left within the radius (only looked up where wanted, for lanes that wait)."""
        due = self.attempts.rivals_due[slots] & wanted
        tried = torch.zeros_like(due)
        if bool(due.any()):
            left = self.vocabulary.rivals(token[due], radius[due], self.attempts.tried[slots[due]], 1)
            tried[due] = (left < 0).all(-1)
        return tried

    def _rivals(self, slots: Tensor) -> Block:
        """The next alternatives that may fit as well as each lane's best, which leads the block so that it can win."""
        best, token = self.attempts.near[slots, 0], self.attempts.near_ids[slots, 0]
        noise, _, slope = self.tolerances.at(self.lanes.length[slots])
        radius = (best + _RUNNER_UP_FACTOR * torch.maximum(noise, best)) / slope
        rivals = self.vocabulary.rivals(token, radius, self.attempts.tried[slots], _RIVALS_AT_ONCE)
        rivals = rivals[:, (rivals >= 0).any(0)]
        return Block(slots, torch.cat([token[:, None], rivals], -1))

    def _commit_best(self, slots: Tensor, rows: Tensor, chosen: Tensor) -> None:
        """Move lanes on with the best token of their position. chosen: its column in the last call, −1 if not there."""
        status, margin = self._verdict(slots)
        token = self.attempts.near_ids[slots, :1].clamp_min(0)
        one = torch.ones_like(slots)
        self.ledger.write(
            slots,
            one,
            self.attempts.near[slots, :1],
            margin[:, None],
            status[:, None],
            self.attempts.near_rank[slots, :1],
        )
        unclear = slots[status == Status.AMBIGUOUS]
        if len(unclear):
            noise, _, _ = self.tolerances.at(self.lanes.length[unclear])
            self.ledger.write_alternatives(
                unclear, _RUNNER_UP_FACTOR * torch.maximum(noise, self.attempts.near[unclear, 0])
            )
        self.attempts.failed[slots] |= status == Status.NOT_FOUND
        here = chosen >= 0
        if bool(here.any()):
            self.lanes.commit(slots[here], token[here], one[here], rows[here], chosen[here])
        if not bool(here.all()):  # its KV is gone: one more token makes it again
            again = slots[~here]
            self.lanes.draft(again, token[~here])
            self.lanes.commit(again, token[~here], one[~here], torch.arange(len(again), device=slots.device))
        self.attempts.reset(slots)

    def _settle(self, slots: Tensor) -> None:
        """Nothing is left to try for these lanes: commit the nearest, honestly named."""
        self._commit_best(slots, torch.zeros_like(slots), torch.full_like(slots, -1))

    def _verdict(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Status and margin of the best token of each lane's position, from everything tried there."""
        near, ids = self.attempts.near[slots], self.attempts.near_ids[slots]
        best, second = near[:, 0], near[:, 1]
        noise, tolerance, slope = self.tolerances.at(self.lanes.length[slots])
        bound = slope * self.vocabulary.separation[ids[:, 0].clamp_min(0)]
        reach = _RUNNER_UP_FACTOR * torch.maximum(noise, best)
        everything = self.attempts.tries[slots] >= int(self.vocabulary.allowed.sum())
        alone = (bound > best + reach) | everything
        alone |= self._rivals_tried(slots, ids[:, 0].clamp_min(0), (best + reach) / slope, ~alone)
        fits = best <= tolerance
        unique = fits & alone & (second > reach) & (self.vocabulary.class_size[ids[:, 0].clamp_min(0)] == 1)
        plausible = (best < bound / 2) | ((best <= _PLAUSIBLE_RESIDUAL) & (second >= _PLAUSIBLE_RATIO * best))
        status = torch.full_like(slots, Status.NOT_FOUND)
        status[plausible & ~fits] = int(Status.BEST_MATCH)
        status[fits] = int(Status.AMBIGUOUS)
        status[unique] = int(Status.CERTIFIED)
        status[self.attempts.failed[slots]] = int(Status.AFTER_FAILURE)
        nearest_rival = torch.where(everything, second, torch.minimum(second, torch.maximum(bound, best)))
        nearest_rival = torch.where(nearest_rival.isinf(), bound, nearest_rival)
        return status, (nearest_rival - best).clamp_min(0)


def _comparable(residual: Tensor) -> Tensor:
    """NaN and overflow (states of absurd size) count as infinitely far."""
    return residual.nan_to_num(nan=float("inf"), posinf=float("inf"))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
