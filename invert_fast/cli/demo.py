"""`invert-fast demo`: capture real sentences with the bundled model, throw the text away, recover it every way."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..strategies import registry
from .options import progress
from .report import table
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..inverter import Inverter
    from ..types import States

_SLOW = {"continuous": 3, "prior": 8, "exhaustive": 1}  # texts for strategies of hundreds of passes a position
_SHORT = {"continuous": 2}  # tokens of each text, for the one of a thousand passes a position
_ROUNDS, _ONCE = 3, ("sipit",)


@dataclass(frozen=True)
class Row:
    """One strategy's result. bare_ratio: wall time over that of the bare batched forward pass of the same tokens;
    times_sipit, times_paper_loop: tokens/s over that of the published loops, unbatched.
    """

    strategy: str
    texts: int
    tokens: int
    exact_match: float
    certified: float
    tokens_per_second: float
    seconds_per_token: float
    forward_tokens_per_token: float
    backward_tokens_per_token: float
    bare_ratio: float
    times_sipit: float
    times_paper_loop: float


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "demo",
        help="bundled model, real text, all strategies side by side",
        description="Capture the states of real sentences with the bundled model, throw the text "
        "away, recover it with every strategy and print what it took.",
    )
    one.add_argument("--json", action="store_true", help="print the rows as JSON")
    one.set_defaults(command=_demo)


def _demo(args: argparse.Namespace) -> int:
    from ..inverter import Inverter

    inverter = Inverter.from_pretrained("bundled")
    texts = sentences()
    if not args.json:
        say(
            f"{len(texts)} sentences, captured with the bundled model at {inverter.decoder.layer.name}, text thrown "
            "away\n"
        )
    with progress(total=len(registry.BUILT_IN) + 2, unit="step", leave=False) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update()

        rows = run(inverter, texts, step)
    if args.json:
        say_json(as_json(rows))
    else:
        say(show(rows, inverter))
    auto = rows[0]
    return 0 if auto.exact_match == auto.certified == 1.0 else 1


def sentences() -> list[str]:
    """The lines that ship with the package."""
    from ..model.load import BUNDLED

    return Path(BUNDLED / "sentences.txt").read_text(encoding="utf-8").splitlines()


def run(inverter: Inverter, texts: list[str], step: Callable[[str], object] = lambda _: None) -> list[Row]:
    """Every strategy over the states of `texts` (the slow ones over the first few). step: told what starts now."""
    step("capture")
    ids = [inverter.encode(text) for text in texts]
    states = inverter.capture(ids)
    step("the published loops")
    loops = published_loops(inverter, ids)
    rows = []
    for name in registry.BUILT_IN:
        step(name)
        count = min(len(texts), _SLOW.get(name, len(texts)))
        short = [row[: _SHORT.get(name, len(row))] for row in ids[:count]]
        rows.append(_row(inverter, name, short, inverter.capture(short) if name in _SHORT else states[:count], loops))
    return rows


def published_loops(inverter: Inverter, ids: list[list[int]]) -> dict[str, float]:
    """Seconds a token of SIPIT as released and of the paper's loop (baseline preset), on the first text: SIPIT on ten
    tokens, and the loop, which takes a thousand steps for each, on one."""
    from ..baselines import continuous_loop, sipit
    from ..baselines.common import capture

    model = inverter.decoder.model
    short, one = ids[0][:10], ids[0][:1]
    results = {
        "sipit": (short, sipit.invert(model, capture(model, short, prefix_by_prefix=True))),
        "paper loop": (one, continuous_loop.invert(model, capture(model, one), preset="baseline")),
    }
    for name, (truth, found) in results.items():
        if found.token_ids != truth:
            raise RuntimeError(f"{name} did not recover {truth}: its time says nothing")
    return {name: found.seconds / len(truth) for name, (truth, found) in results.items()}


def _row(inverter: Inverter, name: str, ids: list[list[int]], states: list[States], loops: dict[str, float]) -> Row:
    fast = name not in _SLOW
    if fast:
        inverter.invert(states[:1], strategy=name)  # the lens is fitted once, before the clock starts
    bare = _median(lambda: list(inverter.capture_ids(ids, batch_size=256)), _ROUNDS)
    kept: list = []
    seconds = _median(
        lambda: kept.append(inverter.invert(states, strategy=name)), _ROUNDS if fast and name not in _ONCE else 1
    )
    found, tokens = kept[-1], sum(map(len, ids))
    return Row(
        name,
        len(ids),
        tokens,
        sum(r.token_ids.tolist() == i for r, i in zip(found, ids, strict=True)) / len(ids),
        sum(r.certified for r in found) / len(ids),
        tokens / seconds,
        seconds / tokens,
        sum(r.cost.forward_tokens for r in found) / tokens,
        sum(r.cost.backward_tokens for r in found) / tokens,
        seconds / bare,
        loops["sipit"] * tokens / seconds,
        loops["paper loop"] * tokens / seconds,
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
    import torch

    body = [
        [
            r.strategy,
            str(r.texts),
            f"{r.exact_match:.3f}",
            f"{r.certified:.3f}",
            f"{r.seconds_per_token:.2g}",
            f"{r.forward_tokens_per_token:,.2f}",
            f"{r.backward_tokens_per_token:,.2f}",
            f"{r.bare_ratio:,.1f}×",
            f"{r.times_sipit:,.3g}×",
            f"{r.times_paper_loop:,.3g}×",
        ]
        for r in rows
    ]
    head = ["strategy", "texts", "exact", "certified", "s/token", "forward/token", "backward/token", "time / bare"]
    head += ["× SIPIT", "× paper loop"]
    device = inverter.decoder.device.type
    return (
        table(head, body) + f"\n{device}, {torch.get_num_threads()} threads, "
        f"{str(inverter.decoder.dtype).removeprefix('torch.')}; median of {_ROUNDS} rounds (sipit and the slow "
        "strategies: one round, the slow ones over the first texts, continuous over their first two tokens). forward, "
        "backward: tokens through the model; bare: a forward pass of the texts.\n"
        "× SIPIT, × paper loop: how many times as fast as the published loops, run unbatched as they are "
        "(invert_fast.baselines) on the first text (the paper's on its first token)"
    )


def as_json(rows: list[Row]) -> list[dict]:
    return [asdict(row) for row in rows]
