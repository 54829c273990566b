"""Worker processes, one a device or several: who has which texts, and what is done when one dies."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess

from ..types import InputError
from .job import About, Found, Job
from .machine import common_cache, threads_of, uninterrupted
from .worker import Place, serve

log = logging.getLogger("invert_fast")

TRIES = 3  # how often a text is given to a worker, and a place gets another worker, before that is left
_CHUNK, _CHUNKS = 64, 4  # texts that are taken at once, at most; and such shares of what is left, for each worker
_PATIENCE = 5.0  # seconds that a worker has to end


@dataclass
class _Slot:
    """The place of a worker, whoever is in it. deaths: in a row, no text having been found between."""

    place: Place
    process: BaseProcess
    pipe: connection.Connection
    idle: bool = False
    prepared: bool = False
    checking: list[int] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    running: bool = False
    alone: list[int] | None = None  # the one text that it is to have, and no other
    deaths: int = 0
    reason: str = ""


class Workers:
    """Processes that share the texts of a job: `with Workers(job, devices) as workers:`, in it `about`, `check`, then
    `recover`.

    devices: one a worker (None: cuda when there is one). When the block is left, by Ctrl-C too, no process is. A text
    whose worker died is given to another, at most `TRIES` times, the last time by itself; what is then left is in
    `lost`: text → why. Raises InputError for what any of them refuses.
    """

    def __init__(self, job: Job, devices: Sequence[str | None], as_line: bool = True):
        self.job, self.devices, self.as_line = job, list(devices), as_line
        self.lost: dict[int, str] = {}
        self._about: About | None = None
        self._slots: list[_Slot] = []
        self._end = contextlib.ExitStack()
        self._spawn = multiprocessing.get_context("spawn")
        self._said: set[str] = set()
        self._last = "it was not started"
        self._queue, self._alone, self._checks = deque[int](), deque[int](), deque[list[int]]()
        self._tries: dict[int, int] = {}  # of the texts that are left
        self._longest, self._recovering = 0, False

    def __enter__(self) -> Workers:
        folder = self._end.enter_context(common_cache())
        shares = threads_of(len(self.devices))
        try:
            for device, threads in zip(self.devices, shares, strict=True):
                first, sharing = not self._slots, self.devices.count(device)
                place = Place(device, threads, sharing, first, str(folder), self.as_line)
                self._slots.append(_Slot(place, *self._started(place)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for slot in self._slots:
            slot.pipe.close()
            slot.process.terminate()
        for slot in self._slots:
            slot.process.join(_PATIENCE)
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()
        self._end.close()

    def about(self) -> About:
        """What the first worker found out about the job."""
        while self._about is None:
            self._listen()
            if not self._slots:
                raise InputError(f"no worker could open {self.job.states}: {self._last}")
        return self._about

    def check(self, texts: Sequence[int]) -> None:
        """InputError for NaN and Inf in these texts, before any of them is recovered. Each worker looks at a share."""
        self.about()
        self._checks.extend(part for k in range(len(self.devices)) if (part := list(texts[k :: len(self.devices)])))
        while self._checks or any(slot.checking for slot in self._slots):
            self._go_on()
            if not self._slots:
                raise InputError(f"no worker could read {self.job.states}: {self._last}")

    def recover(self, texts: Sequence[int]) -> Iterator[Found]:
        """These texts, in the order in which they are found. Longest first, they end about together."""
        lengths = self.about().lengths
        self._queue, self._tries, self._recovering = deque(texts), dict.fromkeys(texts, 0), True
        self._longest = max((lengths[i] for i in texts), default=0)
        while self._tries or any(slot.running for slot in self._slots):
            if not self._slots:
                self.lost |= dict.fromkeys(self._tries, self._last)
                return
            yield from self._go_on()

    def _go_on(self) -> list[Found]:
        self._assign()
        return self._listen()

    def _assign(self) -> None:
        """The next thing to do for everybody who has nothing to do."""
        leading: dict[str, _Slot] = {}
        for slot in self._slots:
            kind = (slot.place.device or "").partition(":")[0]
            leader = leading.setdefault(kind, slot)
            if not slot.idle:
                continue
            if self._checks:
                slot.checking = self._checks.popleft()
                self._tell(slot, "check", slot.checking)
            elif not slot.prepared and (slot is leader or leader.prepared):  # what is measured once is there for others
                self._tell(slot, "prepare")
            elif slot.prepared and self._queue:
                share = -(-len(self._queue) // len(self._slots))
                self._tell(slot, "run", (share, self._longest))
            elif slot.prepared and self._alone:
                slot.alone = [self._alone.popleft()]
                self._tell(slot, "run", (1, self._longest))

    def _tell(self, slot: _Slot, what: str, details: object = None) -> None:
        slot.idle, slot.running = False, what == "run"
        with contextlib.suppress(OSError):  # of one who is gone its end of the pipe tells
            slot.pipe.send((what, details))

    def _listen(self) -> list[Found]:
        """Wait for whoever says something; the texts that were found."""
        found = []
        heard = connection.wait([slot.pipe for slot in self._slots])
        for slot in [slot for slot in self._slots if slot.pipe in heard]:
            try:
                kind, what = slot.pipe.recv()
            except (EOFError, OSError):
                self._bury(slot)
                continue
            if kind == "found":
                slot.deaths = 0
                slot.taken.discard(what.index)
                del self._tries[what.index]
                found.append(what)
            elif kind == "take":
                self._give(slot)
            elif kind == "opened":
                slot.idle, self._about = True, self._about or what
            elif kind == "ready":
                slot.idle, slot.running, slot.checking, slot.alone = True, False, [], None
                slot.prepared |= what == "prepare"
            elif kind == "refused":
                raise InputError(what)
            elif kind == "broke":
                slot.reason, details = what
                self._repeat(logging.WARNING, details.rstrip())
            elif kind == "log":
                self._repeat(*what)
        return found

    def _repeat(self, level: int, message: str) -> None:
        """Say once what workers say."""
        if message not in self._said:
            self._said.add(message)
            log.log(level, "%s", message)

    def _give(self, slot: _Slot) -> None:
        """A few more texts: fewer the fewer are left, so that all end together."""
        if slot.alone is not None:
            texts, slot.alone = slot.alone, []
        else:
            most = min(_CHUNK, -(-len(self._queue) // (_CHUNKS * len(self._slots))))
            texts = [self._queue.popleft() for _ in range(most)]
        slot.taken.update(texts)
        with contextlib.suppress(OSError):
            slot.pipe.send(texts)

    def _bury(self, slot: _Slot) -> None:
        """A worker is dead: what it had goes to others, and another one takes its place."""
        slot.process.join(_PATIENCE)
        code = slot.process.exitcode
        how = slot.reason or (f"signal {-code}" if code is not None and code < 0 else f"exit status {code}")
        hint = ", is memory short?" if how == "signal 9" else ""
        self._last = f"the worker on {slot.place.device or 'the default device'} died ({how}{hint})"
        slot.pipe.close()
        if slot.checking:
            self._checks.appendleft(slot.checking)
        taken = [*slot.taken, *(slot.alone or ())]
        self._take_back(sorted(taken, key=self._about.lengths.__getitem__) if self._about else [])
        slot.deaths += 1
        if self._recovering and not self._tries:
            self._slots.remove(slot)
        elif slot.deaths >= TRIES:
            self._slots.remove(slot)
            log.warning("%s %d times in a row: going on with %d workers", self._last, slot.deaths, len(self._slots))
        else:
            log.warning("%s: another one starts, the %d texts that it had are tried again", self._last, len(taken))
            fresh = _Slot(slot.place, *self._started(slot.place), deaths=slot.deaths)
            self._slots[self._slots.index(slot)] = fresh

    def _take_back(self, texts: list[int]) -> None:
        for index in texts:
            self._tries[index] += 1
            if self._tries[index] >= TRIES:
                self.lost[index] = self._last
                del self._tries[index]
            elif self._tries[index] == TRIES - 1:  # it may be the one that kills
                self._alone.append(index)
            else:
                self._queue.appendleft(index)

    def _started(self, place: Place) -> tuple[BaseProcess, connection.Connection]:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=serve, args=(self.job, place, theirs), daemon=True)
        with uninterrupted():
            process.start()
        theirs.close()  # else its death would not be heard
        return process, ours
