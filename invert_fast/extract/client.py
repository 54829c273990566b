"""Asks an API many questions: in parallel, with retries and back-off, within a budget."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .interface import (
    Answer,
    Api,
    ApiError,
    BudgetSpentError,
    Query,
    RateLimitedError,
    UnavailableError,
    checked,
)

log = logging.getLogger("invert_fast")
_LONGEST_WAIT = 600.0
_LIMITED = 10  # so many times more patience with a rate limit than with a failure
_SLOWEST = 1.0  # seconds between two requests
_jitter = random.Random()  # of our own: the caller's random numbers are the caller's


@dataclass(frozen=True)
class Patience:
    """How failures are borne. Waits double from `first_wait` to `longest_wait` seconds, with jitter, unless the API
    says how long (`Retry-After`); after `retries` failures in a row of one query, or when limits on the rate had it
    wait for `longest_in_all` seconds, the error is raised."""

    retries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60.0
    longest_in_all: float = 3600.0


class Client:
    """The one way to an API. `spent` counts requests that were sent, failed ones included, since they may be charged;
    `answered` those that came back. `budget` bounds `spent`."""

    def __init__(
        self,
        api: Api,
        *,
        budget: int | None = None,
        parallel: int = 1,
        patience: Patience = Patience(),
        sleep: Callable[[float], None] = time.sleep,
        spent: int = 0,
    ):
        self.api, self.budget, self.parallel, self.patience = api, budget, parallel, patience
        self.spent, self.answered, self.retried = spent, 0, 0
        self._sleep, self._lock = sleep, threading.Lock()
        self._next_turn, self._pace, self._said = 0.0, 0.0, -math.inf

    def ask(self, query: Query) -> Answer:
        """One answer. Raises BudgetSpentError before a request too many, and the last error after all retries."""
        attempt, limited, waited = 0, 0, 0.0
        while True:
            self._charge()
            try:
                answer = checked(self.api.ask(query), self.api)
            except UnavailableError as error:
                patient = waited < self.patience.longest_in_all and limited < _LIMITED * self.patience.retries
                if isinstance(error, RateLimitedError) and patient:
                    limited += 1  # the API works, and other threads may have taken the turn
                    waited += self._slow_down(error, limited)
                    continue
                if attempt == self.patience.retries:
                    raise type(error)(f"{error}; gave up after {attempt + 1} tries") from error
                self._back_off(error, attempt)
                attempt += 1
            else:
                with self._lock:
                    self.answered += 1
                    self._pace *= 0.99
                return answer

    def map(self, queries: Iterable[Query]) -> Iterator[Answer]:
        """Answers in the order of the queries, `parallel` at a time; an error stops what was not sent yet."""
        if self.parallel == 1:
            for query in queries:
                yield self.ask(query)
            return
        pool = ThreadPoolExecutor(self.parallel)
        wait = True
        try:
            yield from pool.map(self.ask, queries)
        except KeyboardInterrupt:
            wait = False  # what is under way may take its time, and nobody wants it any more
            raise
        finally:
            pool.shutdown(wait=wait, cancel_futures=True)

    def _charge(self) -> None:
        with self._lock:
            if self.budget is not None and self.spent >= self.budget:
                raise BudgetSpentError(
                    f"the budget of {self.budget} queries is spent: raise it and go on from the progress file"
                )
            self.spent += 1
            now = time.monotonic()
            wait = self._next_turn - now
            if self._pace > 1e-4:  # turns in a row, so that threads do not all come back at once
                self._next_turn = max(now, self._next_turn) + self._pace
        if wait > 0:
            self._sleep(wait)

    def _slow_down(self, error: RateLimitedError, limited: int) -> float:
        """A limit on the rate is everybody's: all threads wait so many seconds, and then go more slowly than before."""
        wait = error.retry_after
        if wait is None:
            wait = min(self.patience.first_wait * 2.0 ** min(limited - 1, 20), self.patience.longest_wait)
        if wait > _LONGEST_WAIT:
            raise ApiError(
                f"the API asks to wait {wait:.0f} s, longer than {_LONGEST_WAIT:.0f} s: go on later, from the progress "
                "file"
            ) from error
        with self._lock:
            self.retried += 1
            now = time.monotonic()
            told = now - self._said < 10
            self._said = self._said if told else now
            self._pace = min(_SLOWEST, max(1.5 * self._pace, min(wait, 0.05) / self.parallel))
            self._next_turn = max(self._next_turn, now + wait)
        if not told:
            log.warning("%s; waiting %.1f s", error, wait)
        return wait

    def _back_off(self, error: UnavailableError, attempt: int) -> None:
        wait = min(self.patience.first_wait * 2.0**attempt, self.patience.longest_wait) * _jitter.uniform(0.75, 1.25)
        log.warning("%s; try %d of %d in %.1f s", error, attempt + 2, self.patience.retries + 1, wait)
        with self._lock:
            self.retried += 1
        self._sleep(wait)
