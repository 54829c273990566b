"""The demonstration: capture real sentences with the bundled model, throw the text away, recover it every way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .inverter import STRATEGIES, Inverter
from .model import BUNDLED
from .report import table
from .types import States

_SLOW = {"continuous": 8, "prior": 8, "exhaustive": 1}  # texts for strategies of hundreds of passes a position
_SHORT = {"continuous": 2}  # tokens of each text, for the one of a thousand passes a position
_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One strategy's result. bare_ratio: wall time over that of the bare batched forward pass of the same tokens."""

    strategy: str
    texts: int
    tokens: int
    exact_match: float
    certified: float
    tokens_per_second: float
    forward_tokens_per_token: float
    bare_ratio: float


def sentences() -> list[str]:
    """The lines that ship with the package."""
    return Path(BUNDLED / "sentences.txt").read_text(encoding="utf-8").splitlines()


def run(inverter: Inverter, texts: list[str], step: Callable[[str], object] = lambda _: None) -> list[Row]:
    """Every strategy over the states of `texts` (the slow ones over the first few). step: told what starts now."""
    step("capture")
    ids = [inverter.encode(text) for text in texts]
    states = inverter.capture(ids)
    rows = []
    for name in STRATEGIES:
        step(name)
        count = min(len(texts), _SLOW.get(name, len(texts)))
        short = [row[: _SHORT.get(name, len(row))] for row in ids[:count]]
        rows.append(_row(inverter, name, short, inverter.capture(short) if name in _SHORT else states[:count]))
    return rows


def _row(inverter: Inverter, name: str, ids: list[list[int]], states: list[States]) -> Row:
    fast = name not in _SLOW
    if fast:
        inverter.invert(states[:1], strategy=name)  # the lens is fitted once, before the clock starts
    bare = _median(lambda: list(inverter.capture_ids(ids, batch_size=256)), _ROUNDS)
    kept: list = []
    seconds = _median(lambda: kept.append(inverter.invert(states, strategy=name)), _ROUNDS if fast else 1)
    found, tokens = kept[-1], sum(map(len, ids))
    return Row(
        name,
        len(ids),
        tokens,
        sum(r.token_ids.tolist() == i for r, i in zip(found, ids, strict=True)) / len(ids),
        sum(r.certified for r in found) / len(ids),
        tokens / seconds,
        sum(r.cost.forward_tokens for r in found) / tokens,
        seconds / bare,
    )


def _median(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(rows: list[Row], inverter: Inverter) -> str:
    """The table and the line under it."""
    body = [
        [
            r.strategy,
            str(r.texts),
            f"{r.exact_match:.3f}",
            f"{r.certified:.3f}",
            f"{r.tokens_per_second:,.1f}",
            f"{r.forward_tokens_per_token:,.2f}",
            f"{r.bare_ratio:,.1f}×",
        ]
        for r in rows
    ]
    head = ["strategy", "texts", "exact match", "certified", "tokens/s", "forward tokens/token", "time / bare forward"]
    device = inverter.decoder.device.type
    return (
        table(head, body) + f"\n{device}, {torch.get_num_threads()} threads, "
        f"{str(inverter.decoder.dtype).removeprefix('torch.')}; median of {_ROUNDS} rounds (slow strategies: one round "
        "over the first texts, continuous over their first two tokens)"
    )


def as_json(rows: list[Row]) -> list[dict]:
    return [asdict(row) for row in rows]
