"""The one thread that owns the inverter: it takes what waits into the lanes of one engine run, and texts join and leave
while others are worked on."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

import torch
from torch import Tensor

from ..engine.calibrate import with_noise
from ..engine.engine import Engine
from ..engine.memory import plan
from ..engine.protocol import Strategy
from ..engine.read import run_as_read
from ..inverter import Inverter
from ..strategies.registry import strategy_named
from .metrics import Metrics
from .problems import ProblemError
from .waiting import Kind, Taken, Waiting

log = logging.getLogger("invert_fast")

_SHORTEST_LANES = 512  # tokens
_LANES = 128
_IDLE = 5.0  # seconds without work after which lanes are given back


class Feed:
    """What an engine run is fed with, as it comes, and what is in its lanes. An iterator that ends when a request of
    another kind waits and all of this kind that it may take are taken, or when nothing came for a while."""

    def __init__(self, waiting: Waiting, kind: Kind, lanes: int, tokens: int, metrics: Metrics):
        self.waiting, self.kind, self.tokens, self.metrics = waiting, kind, tokens, metrics
        self.running: dict[int, Taken] = {}
        self._left = lanes  # texts that are still taken once another kind waits
        self._next, self._inside = 0, 0

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> tuple[int, Tensor] | None:
        while not self.waiting.closed and self._left > 0:
            room = self.tokens - self._inside if self.running else self.kind.longest
            longest = max((len(taken.rows) for taken in self.running.values()), default=0)
            taken, others = self.waiting.take(self.kind, room, longest)
            if taken is not None:
                self._left -= others
                return self._add(taken)
            if others:
                break
            if self.running:
                return None
            if not self.waiting.wait(_IDLE):
                break
        raise StopIteration

    def _add(self, taken: Taken) -> tuple[int, Tensor]:
        index, self._next = self._next, self._next + 1
        self.running[index] = taken
        self._inside += len(taken.rows)
        self.metrics.began(time.perf_counter() - taken.job.began)
        return index, taken.rows

    def leave(self, index: int) -> Taken:
        """The text is no longer in a lane."""
        taken = self.running.pop(index)
        self._inside -= len(taken.rows)
        self.metrics.left()
        return taken

    def wanted(self, index: int) -> bool:
        """Whether anybody still waits for a text; one that nobody does leaves."""
        if not (self.running[index].job.cancelled or self.waiting.closed):
            return True
        self.leave(index)
        return False


class Worker:
    """Works on what is put into `waiting` until that is closed. Its thread alone runs the model.

    strategy, batch_size, max_memory: as of `Inverter.invert_iter`; tokens: of the texts in the lanes at once;
    insist: use states that say they are of another model or layer; precisions: pairs (stored, computed) to be ready for
    before `ready` is set; others are measured when they first come. error: what ended it, if anything did.
    """

    def __init__(
        self,
        inverter: Inverter,
        metrics: Metrics,
        *,
        strategy: str | Strategy = "auto",
        tokens: int = 4096,
        batch_size: int | None = None,
        max_memory: float | None = None,
        insist: bool = False,
        precisions: tuple[tuple[str, str], ...] = (("float32", "float32"),),
    ):
        self.inverter, self.metrics, self.strategy = inverter, metrics, strategy_named(strategy)
        self.tokens, self.batch_size, self.max_memory = tokens, batch_size, max_memory
        self.insist, self.precisions = insist, precisions
        self.waiting = Waiting(_SHORTEST_LANES, inverter.decoder.max_length - len(inverter.decoder.reading.prefix))
        self.ready, self.ended = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="invert-fast-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, seconds: float) -> None:
        """Give up whatever is there, and wait so long for the round that runs."""
        self.waiting.close()
        if self.alive:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._prepare()
            self.ready.set()
            while (kind := self.waiting.first()) is not None:
                self._work(kind)
        except BaseException as error:
            self.error = error
            log.exception("the worker ended")
        finally:
            self.ended.set()

    def _prepare(self) -> None:
        """Lens, tolerances and packed weights, by an inversion of a few tokens in each precision."""
        allowed = self.inverter.vocabulary.allowed.nonzero().flatten()
        ids = allowed[:: max(1, len(allowed) // 4)][: min(4, self.inverter.decoder.max_length)].tolist()
        (rows,) = self.inverter.capture_ids([ids])
        for stored, computed in self.precisions:
            if self.waiting.closed:
                return
            dtype = getattr(torch, stored)
            engine = self._engine(Kind(stored, computed, self.waiting.shortest))
            texts = [(0, rows.to(dtype).float())]
            for _, recovery in run_as_read(self.inverter.decoder, texts, engine.run):
                log.info(
                    "ready for %s states of %s passes%s",
                    *(stored, computed),
                    ""
                    if recovery.certified
                    else ": NOT certified on the model's own states, see `invert-fast diagnose`",
                )

    def _engine(self, kind: Kind) -> Engine:
        inverter, longest = self.inverter, kind.longest + len(self.inverter.decoder.reading.prefix)
        work = plan(inverter.decoder, longest, self.max_memory, self.batch_size)
        tolerances, strategy = inverter.calibrate(kind.stored, kind.computed), self.strategy
        if kind.noise is not None:  # over each row's own level: whose rows are given makes no difference
            like = torch.ones(2, inverter.decoder.width)
            tolerances = with_noise(inverter.decoder, inverter.vocabulary, tolerances, kind.noise, like)
            strategy = strategy_named("beam") if strategy.name == "auto" else strategy
        return Engine(
            inverter.decoder,
            inverter.vocabulary,
            tolerances,
            strategy,
            min(work.slots, _LANES),
            longest,
            work.tokens_per_call,
            kind.stored,
        )

    def _work(self, kind: Kind) -> None:
        """One engine run. What goes wrong in it is told to those whose texts were in its lanes."""
        feed = None
        try:
            engine = self._engine(kind)
            feed = Feed(self.waiting, kind, engine.slots, self.tokens, self.metrics)
            run = run_as_read(self.inverter.decoder, feed, partial(engine.run, wanted=feed.wanted))
            for index, recovery in run:
                taken = feed.running[index]
                self.metrics.found(len(taken.rows), recovery)
                taken.job.tell((taken.number, recovery))
                feed.leave(index)
        except Exception:
            log.exception("a run of %s states failed", kind.stored)
            problem = ProblemError(
                "internal",
                "the texts could not be worked on, expected their recoveries: try again, and ask who runs this server "
                "to look into its log",
            )
            running = [feed.leave(index) for index in list(feed.running)] if feed is not None else []
            for taken in running:
                taken.job.fail(problem)
            while not running and (taken := self.waiting.take(kind, kind.longest)[0]) is not None:
                taken.job.fail(problem)  # the run did not begin: nor would the next
