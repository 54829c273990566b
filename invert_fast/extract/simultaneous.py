"""Bisection of many tokens at once, from the argmax alone: a call can tell log2(N + 1) bits instead of one.

As in "Stealing Part of a Production Language Model" (Carlini et al. 2024) a box of intervals is narrowed, with one
bias for each of N tokens. Each bias is set low in its interval, so that on average `c` of the N tokens would overtake
the reference: if one wins, its interval shrinks to that lowest part (log2 N/c bits); if none does, all of them lose it.
A token that is done makes place for the next, so N stays large to the end.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from .bisection import FIRST_BRACKET, target_width
from .interface import UNKNOWN, ApiError, Query
from .rounding import argmax_rounding
from .work import Work

_GRID = 4096
_UNIFORM = 0.15  # of the prior: what no token found so far has prepared for
_REFIT = 64
_CHECKS = 5


def simultaneous(work: Work) -> None:
    """Narrow the gaps of all wanted tokens to the precision, `client.parallel` groups of `per_query` at a time.

    A closing round puts every token at the low end of its interval at once: the reference must win. Raises ApiError
    where answers contradict each other, which an argmax without noise never does.
    """
    box = _Box(work)
    for _ in range(_CHECKS):
        _narrow(work, box)
        if not box.check(work):
            box.widen()
            return
    raise ApiError(box.verdict(f"after {_CHECKS} rounds the low ends of the intervals are still crossed"))


def _narrow(work: Work, box: _Box) -> None:
    if work.client.parallel == 1:
        _lane(work, box)
        return
    pool, wait = ThreadPoolExecutor(work.client.parallel), True
    try:
        for done in [pool.submit(_lane, work, box) for _ in range(work.client.parallel)]:
            done.result()
    except BaseException as error:  # an interrupt reaches this thread only
        box.stop()
        wait = not isinstance(error, KeyboardInterrupt)
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def _lane(work: Work, box: _Box) -> None:
    """One thread: ask, learn, replace what is done."""
    mine = np.zeros(0, np.int64)
    try:
        while len(mine := box.refill(mine)):
            bias = box.biases(mine)
            answer = work.client.ask(Query(work.prompt, dict(zip(mine.tolist(), bias.tolist(), strict=True))))
            box.learn(mine, bias, answer.token)
    except BaseException:
        box.stop()  # the other threads need not spend more
        raise


class _Box:
    """The intervals, shared by the threads. Slack (rounding) is added to each bound as it is learned."""

    def __init__(self, work: Work):
        self.bounds, self.work, self.lock = work.bounds, work, threading.Lock()
        self.limit = work.capabilities.bias_limit
        self.bracket = min(self.limit, FIRST_BRACKET)
        self.slack = float(argmax_rounding(work.capabilities, self.bracket))
        self.width = target_width(work.precision, self.slack) + 2 * self.slack
        self.noise, self.extra = 0.0, 0.0
        self.small, self.contradictions, self.asked, self.resolved = 0, 0, 0, 0
        self.unreachable = np.zeros(len(self.bounds.low), bool)
        self.most = max(1, min(work.per_query, work.capabilities.bias_entries))
        order = np.random.default_rng(work.seed).permutation(work.tokens)
        todo = [int(i) for i in order if self.bounds.width[i] > self.width]
        self.odd = work.client.api.untellable
        self.waiting = [i for i in todo if i not in self.odd]
        self.waiting_odd = [i for i in todo if i in self.odd]  # at most one of them a call
        self.stopped = False
        self._fit_prior()

    def stop(self) -> None:
        self.stopped = True

    def refill(self, mine: np.ndarray) -> np.ndarray:
        """Tokens of this thread that are not done, and as many waiting ones as there is room for."""
        with self.lock:
            if self.stopped:
                return mine[:0]
            going = mine[(self.bounds.width[mine] > self.width) & ~self.unreachable[mine]]
            self.resolved += len(mine) - len(going)
            if self.resolved >= _REFIT:
                self.resolved = 0
                self._fit_prior()
            fair = -(-(len(self.waiting) + len(going) + 1) // self.work.client.parallel)
            room = max(0, min(self.most, max(fair, 1)) - len(going))
            fresh: list[int] = []
            if room and self.waiting_odd and not self.odd.intersection(going.tolist()):
                fresh, room = [self.waiting_odd.pop(0)], room - 1
            fresh, self.waiting = fresh + self.waiting[:room], self.waiting[room:]
            return np.concatenate([going, np.array(fresh, np.int64)])

    def biases(self, ids: np.ndarray) -> np.ndarray:
        """The point of each interval below which the gap lies with probability `share(N)`, under the prior."""
        low = self.bounds.low[ids]
        high = np.minimum(self.bounds.high[ids], np.maximum(self.bracket, np.minimum(2 * low, self.limit)))
        level = share(len(ids))
        below, above = np.interp(low, self.grid, self.cdf), np.interp(high, self.grid, self.cdf)
        bias = np.interp(below + level * (above - below), self.cdf, self.grid)
        narrow = high - low < 0.25  # there the prior is flat
        bias = np.where(narrow, low + level * (high - low), bias)
        # no lower than a target's width above: a narrower answer would be of no use
        bias = np.maximum(bias, np.minimum(low + 0.9 * self.width, (low + high) / 2))
        last = high - low < 1e-3 * self.limit  # at the edge of what the limit allows, or nearly done
        return np.where(last & ~np.isfinite(self.bounds.high[ids]), high, bias).astype(np.float32).astype(np.float64)

    def learn(self, ids: np.ndarray, bias: np.ndarray, token: int) -> None:
        """The winner's gap is at most its bias; nobody's is less than its bias less the winner's overshoot."""
        with self.lock:
            self.asked += 1
            low, high = self.bounds.low, self.bounds.high
            slack = argmax_rounding(self.work.capabilities, bias) + self.extra
            at = np.flatnonzero(ids == token)
            if len(at):
                won = float(bias[at[0]])
                # overshoot = won − gap ≤ won − low
                floor = bias - (won - low[token]) - slack
                floor[at[0]] = 0.0
                most = won + float(slack[at[0]])
                self._contradicted(token, low[token] - most)
                high[token] = min(high[token], most)
            elif token == self.work.reference:
                floor = bias - slack
            else:
                if token == UNKNOWN:
                    raise ApiError(
                        "the API chose a token whose name does not tell its id: give the model's own tokenizer, so "
                        "that such tokens are raised one at a time"
                    )
                raise ApiError(
                    f"the API chose token {token}, which was not raised and is not the most likely one: its argmax is "
                    "not deterministic; use a method that needs log-probs"
                )
            crossed = floor - high[ids]
            for i in np.flatnonzero(crossed > 0):
                self._contradicted(int(ids[i]), float(crossed[i]))
            floor[crossed > 0] = 0.0  # which of the two answers was wrong is not known
            low[ids] = np.maximum(low[ids], floor)
            gone = ~np.isfinite(high[ids]) & (low[ids] >= self.limit - 3 * slack)
            self.unreachable[ids[gone]] = True
            if len(at):
                self.work.on_known(np.array([token]))

    def _contradicted(self, token: int, by: float) -> None:
        """Answers that cannot all be true: open the interval again, and give up when it is not an exception."""
        if by <= 0:
            return
        if by <= self.work.precision / 4:  # noise that the precision has room for: all intervals get it in the end
            self.extra, self.small = max(self.extra, 2 * by), self.small + 1
            if self.small > 10 + self.asked // 20:
                raise ApiError(self.verdict(f"{self.small} of {self.asked} answers contradict others"))
            self.bounds.low[token] = max(0.0, self.bounds.low[token] - 2 * by)
            self.bounds.high[token] += 2 * by
            return
        self.noise, self.contradictions = max(self.noise, by), self.contradictions + 1
        if self.contradictions > 5 + self.asked // 50:
            raise ApiError(
                self.verdict(
                    f"{self.contradictions} of {self.asked} answers contradict others by up to {self.noise:.2g} nats"
                )
            )
        self.bounds.low[token] = max(0.0, self.bounds.low[token] - 2 * by - self.width)
        self.bounds.high[token] += 2 * by + self.width

    def verdict(self, what: str) -> str:
        return (
            f"{what}: the API's argmax is not deterministic enough for a precision of {self.work.precision:g} nats; "
            "ask for a coarser one, or use a method that needs log-probs"
        )

    def check(self, work: Work) -> bool:
        """One call for `most` tokens, at the low ends of their intervals; True where one of them won and is open again.

        Upper ends need no check: each was seen, as a win at that very bias.
        """
        ids = work.tokens[np.isfinite(self.bounds.high[work.tokens]) & (work.tokens != work.reference)]
        odd = np.isin(ids, list(self.odd))
        plain, alone = ids[~odd], ids[odd]  # the odd ones cost a call each
        parts = [plain[start : start + self.most] for start in range(0, len(plain), self.most)]
        parts += [alone[i : i + 1] for i in range(len(alone))]
        margin = 2 * (self.slack + self.extra)
        queries = [
            Query(work.prompt, {int(i): max(0.0, float(self.bounds.low[i]) - margin) for i in part}) for part in parts
        ]
        wrong = []
        for part, answer in zip(parts, work.client.map(queries), strict=True):
            if answer.token in part:
                self._contradicted(int(answer.token), self.work.precision / 8)
                wrong.append(int(answer.token))
        again = [i for i in wrong if self.bounds.width[i] > self.width]
        self.waiting += [i for i in again if i not in self.odd]
        self.waiting_odd += [i for i in again if i in self.odd]
        return bool(wrong)

    def widen(self) -> None:
        """What noise was seen belongs to every interval."""
        if self.extra:
            known = self.work.tokens[np.isfinite(self.bounds.high[self.work.tokens])]
            known = known[known != self.work.reference]
            self.bounds.low[known] = np.maximum(0.0, self.bounds.low[known] - self.extra)
            self.bounds.high[known] += self.extra

    def _fit_prior(self) -> None:
        """Where gaps lie: the tokens found so far, smoothed, and a uniform share for surprises."""
        known = self.work.tokens[np.isfinite(self.bounds.high[self.work.tokens])]
        self.grid = np.linspace(0.0, max(self.limit, self.bracket), _GRID)
        uniform = np.minimum(self.grid / self.bracket, 1.0) * 0.98 + 0.02 * self.grid / self.grid[-1]
        if len(known) < 16:
            self.cdf = uniform
            return
        found = np.sort((self.bounds.low[known] + self.bounds.high[known]) / 2)
        spread = max(0.1, float(found.std()) * len(found) ** -0.2)
        knots = np.concatenate([[0.0], found, [found[-1] + 4 * spread]])
        seen = np.interp(self.grid, knots, np.linspace(0.0, 1.0, len(knots)))
        self.cdf = (1 - _UNIFORM) * seen + _UNIFORM * uniform


@lru_cache(maxsize=4096)
def share(count: int) -> float:
    """The q that makes the expected information of a call largest: N tokens, each below its bias with probability q.

    (1 − q)^N · N log(1/(1 − q)) + (1 − (1 − q)^N) · log(1/q); q = ½ for one token: plain bisection.
    """
    q = np.linspace(0.05, 6.0, 1200) / max(count, 1)
    q = q[q < 0.99]
    none = (1 - q) ** count
    gain = none * count * -np.log1p(-q) + (1 - none) * -np.log(q)
    return float(q[gain.argmax()])
