"""The outer loop: strategies propose, the engine verifies, commits and records. Nothing else certifies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.own_lanes import lanes_of
from ..model.prefix import Passed
from ..model.transfer import picked, told
from ..model.vocabulary import Vocabulary
from ..types import Recovery, Status
from .attempts import Attempts
from .ledger import Ledger
from .memory import ran_out
from .noisy import keep_certain
from .protocol import Block, Context, Run, Strategy, Working, served
from .rivals import try_rivals
from .together import passed_together
from .tolerances import Tolerances
from .verdict import Judge, behind
from .watched import Watched

log = logging.getLogger("invert_fast")

_END = object()


@dataclass(frozen=True)
class Engine:
    """Recovers streams of texts on `slots` lanes of up to `max_len` tokens; any number of them, side by side too.

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

    def run(
        self, texts: Iterable[tuple[int, Tensor] | None], wanted: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Recovery]]:
        """`(index, hidden [T, D])` in, `(index, Recovery)` out, in the order they are finished.

        texts may come while others are worked on: None says that there is none now, and the next is asked for after a
        round (so it had better wait for one where nothing is in the lanes). wanted: asked before each round about
        every text in the lanes; one that is not wanted any more leaves its lane, and nothing comes out of it.
        """
        return _Stream(self, iter(texts), wanted).recoveries()


class _Stream:
    """One run of an engine: its lanes, and all that is known of the texts in them."""

    def __init__(
        self, engine: Engine, source: Iterator[tuple[int, Tensor] | None], wanted: Callable[[int], bool] | None = None
    ):
        decoder, vocabulary, tolerances = engine.decoder, engine.vocabulary, engine.tolerances
        self.decoder, self.source, self.tokens_per_call = decoder, source, engine.tokens_per_call
        self.wanted, self.ended, self.more_later = wanted, False, False
        self.lanes = lanes_of(decoder, engine.slots, engine.max_len)
        self.attempts = Attempts(engine.slots, vocabulary.size, decoder.width, decoder.device)
        self.ledger = Ledger(self.lanes, self.attempts, vocabulary, tolerances)
        self.tolerances = tolerances
        self.judge = Judge(self.lanes, self.attempts, vocabulary, tolerances)
        kept = self.lanes, self.attempts, self.ledger.traces, engine.states_dtype, self.ledger.posteriors
        context = Context(decoder, vocabulary, tolerances, *kept)
        self.proposer = Watched(engine.strategy, context)

    def recoveries(self) -> Iterator[tuple[int, Recovery]]:
        try:
            yield from self._rounds()
        finally:
            self.proposer.ended()

    def _rounds(self) -> Iterator[tuple[int, Recovery]]:
        self._refill()
        while True:
            done = self.lanes.finished()
            if len(done):
                keep_certain(self.ledger, done)
                taken = self.ledger.take(done)
                if self.tolerances.level is None:  # noise teaches nothing
                    self.proposer.finished(done, self.ledger.status[done] == Status.CERTIFIED)
                self.lanes.release(done)
                yield from taken
                self._refill()
                continue  # a text of no tokens is finished already
            if self.wanted is not None:
                self._drop(self.wanted)
            active = self.lanes.active()
            if len(active):
                with self.ledger.timed(active):
                    self._step(active)
            elif self.ended:
                return
            if self.more_later or not len(active):
                self._refill()

    def _drop(self, wanted: Callable[[int], bool]) -> None:
        """Free the lanes of texts that nobody waits for any more."""
        texts = self.lanes.text.tolist()
        gone = [slot for slot, text in enumerate(texts) if text >= 0 and not wanted(text)]
        if gone:
            slots = torch.tensor(gone)
            self.attempts.reset(slots)
            self.ledger.forget(gone)
            self.lanes.release(slots)

    @torch.no_grad()
    def _refill(self) -> None:
        """Put the next texts into the idle lanes."""
        idle, items = self.lanes.idle(), []
        self.more_later = False
        while len(items) < len(idle) and not (self.ended or self.more_later):
            item = next(self.source, _END)
            self.ended, self.more_later = item is _END, item is None
            if isinstance(item, tuple):
                items.append(item)
        if not items:
            return
        started = idle[: len(items)]
        self.lanes.load(started, [index for index, _ in items], [rows for _, rows in items])
        self.ledger.clear(started)
        self.lanes.part = "draft"
        with self.ledger.timed(started):
            self.proposer.begin(started)

    @torch.no_grad()
    def _step(self, active: Tensor) -> None:
        """One round: every active lane gets one unit of work, or its position is settled with what is known."""
        self.lanes.part = "repair"  # what a strategy computes while it thinks
        due = self.attempts.rivals_due[active]
        asking = active[~due]
        items = self.proposer.propose(asking) if len(asking) else []
        exhausted = asking[~served(items, asking)]
        if bool(due.any()):
            items = [*items, self.judge.rivals(active[due])]
        for item, passed in zip(items, passed_together(self.lanes, items, self.tokens_per_call), strict=True):
            if not isinstance(item, Working):
                self._work(item, passed)
        if len(exhausted):
            self._settle_for_best(exhausted)

    def _settle_for_best(self, slots: Tensor) -> None:
        """Nothing is left to try at these lanes' positions: commit the nearest, honestly named. One that fits, but was
        too loud to be believed, has its rivals tried before."""
        self.attempts.nothing_left[slots] = True
        fits = self.judge.believable(slots)
        self.attempts.rivals_due[slots] = self.attempts.nothing_left[slots] = fits
        given_up = slots[~fits]
        if len(given_up):
            self._commit_best(given_up, torch.zeros_like(given_up), torch.full_like(given_up, -1))

    def _work(self, item: Run | Block, passed: Passed | None) -> None:
        """Verify one item in as many calls as memory asks for, or by what went through one `passed` with others. What a
        cut leaves over is proposed again later."""
        self.lanes.part = part = "draft" if isinstance(item, Run) else item.part
        if passed is not None:
            self._verify_run(item, passed) if isinstance(item, Run) else self._verify_block(item, passed)
            return
        start = 0
        while start < len(item.slots):
            columns = min(item.ids.shape[1], max(2, self.tokens_per_call))  # 2: a rival needs the best beside it
            rows = max(1, self.tokens_per_call // columns)
            slots, ids = item.slots[start : start + rows], item.ids[start : start + rows, :columns]
            try:
                self.lanes.part = part
                if isinstance(item, Run):
                    self._verify_run(Run(slots, ids, item.counts[start : start + rows].clamp_max(columns), item.final))
                else:
                    self._verify_block(Block(slots, ids))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._with_less(error, ids.numel())
                continue
            start += rows

    def _with_less(self, error: BaseException, tokens: int) -> None:
        """After a call of so many tokens ran out of memory: half as many from now on. Raises whatever else it was."""
        if not ran_out(error) or tokens <= 2:
            raise error
        self.tokens_per_call = max(2, tokens // 2)
        log.warning("out of memory: going on with %d tokens a call (see --max-memory)", self.tokens_per_call)

    def _verify_run(self, run: Run, passed: Passed | None = None) -> None:
        """One causal pass: everything before the first mismatch is certified by it."""
        slots, ids, K = run.slots, run.ids, run.ids.shape[1]
        hidden = self.lanes.draft(slots, ids) if passed is None else self.lanes.resume(passed)
        target = self.lanes.rows(slots, K)
        step, rows = torch.arange(K), torch.arange(len(ids))
        position = self.lanes.length[slots][:, None] + step
        plain, residual = told(*self.tolerances.row_residuals(hidden, target, position))  # the device is waited for
        found = self.judge.run(run, residual)
        counts = found.counts
        span = self.ledger.write(slots, counts, plain, found.margin, found.status, found.error)
        is_open = found.open & (step < counts[:, None])
        waiting = is_open.any(-1)
        self.lanes.commit(slots, ids, counts, rows, keep=waiting, span=span)
        self.attempts.hear(slots, found.loudness, step < counts[:, None])
        self.attempts.reset(slots[counts > 0])
        if bool(waiting.any()):
            lost = self._settle_open(run, position, [plain, residual], hidden, is_open)
            waiting = torch.zeros_like(waiting).index_fill_(0, lost, True)  # these have been told of already
        stopped = (counts < run.counts) & ~waiting
        if bool(stopped.any()):
            self._note_of(run, (rows[stopped], counts[stopped]), [plain, residual], hidden)
            if self.proposer.observes:
                self.proposer.observe(behind(run, found, stopped, position, hidden))

    def _settle_open(
        self, run: Run, position: Tensor, residuals: list[Tensor], hidden: Tensor, is_open: Tensor
    ) -> Tensor:
        """Try the rivals of what a run found and committed; where one is nearer, take the lane back to there, to be
        tried again with all that belongs to it. Returns the rows of the run that were."""
        row, column = is_open.nonzero(as_tuple=True)
        slots, at, own = run.slots[row], position[row, column], residuals[1][row, column]
        self.lanes.part = "rivals"
        while True:
            try:
                tried = try_rivals(self.judge, slots, at, own, self.tokens_per_call)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._with_less(error, self.tokens_per_call)
        self.ledger.confirm(slots, at, *self.judge.confirmed(at, own, tried.second, tried.unclear))
        if bool(tried.unclear.any()):
            near = tried.within(self.tolerances.at(at).reach(own, self.judge.z))
            for index in tried.unclear.nonzero().flatten().tolist():
                self.ledger.alternatives[int(slots[index]), int(at[index])] = near[index]
        lost = tried.lost.nonzero().flatten()
        first = torch.full_like(run.slots, run.ids.shape[1]).scatter_reduce_(0, row[lost], column[lost], "amin")
        back = (first < run.ids.shape[1]).nonzero().flatten()
        if len(back):
            slots, at = run.slots[back], first[back]
            self.lanes.take_back(slots, position[back, at])
            self._note_of(run, (back, at), residuals, hidden)
            index = torch.stack([((row == r) & (column == c)).nonzero()[0, 0] for r, c in zip(back, at, strict=True)])
            winner = tried.ids[index].gather(1, tried.residual[index].argmin(-1, keepdim=True))
            for part in torch.arange(len(back)).split(max(1, self.tokens_per_call)):
                self._verify_block(Block(slots[part], winner[part], part="rivals"))
        return back

    def _verify_block(self, block: Block, passed: Passed | None = None) -> None:
        """One fan-out over alternatives for the next token of each lane; lanes whose answer is clear move on."""
        slots, ids = block.slots, block.ids
        hidden = self.lanes.fan_out(slots, ids.clamp_min(0)) if passed is None else self.lanes.resume(passed)
        target, position = self.lanes.target(slots), self.lanes.length[slots][:, None]
        plain, residual = told(*self.tolerances.residuals(hidden, target, position))  # the device is waited for
        if block.part == "rivals":
            self.attempts.rivals[slots] += (ids >= 0).sum(-1)
        self._note(slots, ids, plain, residual, hidden)
        ready = self.judge.settled(slots)
        if bool(ready.any()):
            hit = ids[ready] == self.attempts.near_ids[slots[ready], :1]
            chosen = torch.where(hit.any(-1), hit.int().argmax(-1), -1)
            self._commit_best(slots[ready], ready.nonzero().flatten(), chosen)

    def _note_of(self, run: Run, at: tuple[Tensor, Tensor], residuals: list[Tensor], hidden: Tensor) -> None:
        """Remember what a run showed in these rows and columns, `[n]` each."""
        ids, plain, residual = (table[at][:, None] for table in (run.ids, *residuals))
        self._note(run.slots[at[0]], ids, plain, residual, picked(hidden, *at)[:, None])

    def _note(self, slots: Tensor, ids: Tensor, plain: Tensor, residual: Tensor, hidden: Tensor) -> None:
        """Remember verified candidates of this position; ask for rivals when the best fits but may not be alone."""
        self.attempts.note(slots, ids, plain, residual, hidden)
        self.attempts.rivals_due[slots] = self.judge.believable(slots)

    def _commit_best(self, slots: Tensor, rows: Tensor, chosen: Tensor) -> None:
        """Move lanes on with the best token of their position. chosen: its column in the last call, −1 if not there."""
        status, margin, error = (column[:, None] for column in self.judge.of_best(slots))
        near, token = self.attempts.near[slots, :1], self.attempts.near_ids[slots, :1].clamp_min(0)
        one = torch.ones_like(slots)
        plain = self.attempts.near_plain[slots][:, None].masked_fill(near.isinf(), torch.inf)  # nothing tried
        self.ledger.write(slots, one, plain, margin, status, error, self.attempts.near_rank[slots, :1])
        status = status[:, 0]
        unclear = slots[status == Status.AMBIGUOUS]
        if len(unclear):
            self.ledger.write_alternatives(unclear, self.judge.reach(unclear))
        self.attempts.failed[slots] |= status == Status.NOT_FOUND
        self.attempts.hear(slots, self.judge.loudness(slots)[:, None], near < torch.inf)
        here = chosen >= 0
        if bool(here.any()):
            self.lanes.commit(slots[here], token[here], one[here], rows[here], chosen[here])
        if not bool(here.all()):  # its KV is gone: one more token makes it again
            again = slots[~here]
            self.lanes.draft(again, token[~here])
            self.lanes.commit(again, token[~here], one[~here], torch.arange(len(again)))
        self.attempts.reset(slots)
