"""What the drawings ask of finished searches."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .runs import Run, by_steps

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Searched:
    """One position's search: right: whether the true token was committed; loss, rank: (step, value)."""

    prompt: int
    position: int
    token: str
    right: bool
    steps: int
    loss: Curve
    rank: Curve


@dataclass(frozen=True)
class Figure:
    """A finished figure. name: of its file; title: what it is, in the paper's words or near them; svg: the drawing;
    rows: what the paper states, and ours: (what, ours, the paper's)."""

    name: str
    title: str
    svg: str
    rows: tuple[tuple[str, str, str], ...] = ()


def positions(run: Run) -> Iterator[Searched]:
    """All positions up to the first wrong one of each prompt: those behind it were searched for behind another text."""
    stride = run["settings"]["stride"]
    for number, prompt in enumerate(run["prompts"]):
        for t, (loss, rank, steps) in enumerate(zip(prompt["loss"], prompt["rank"], prompt["steps"], strict=True)):
            yield Searched(
                number,
                t,
                prompt["tokens"][t],
                t != prompt["wrong"],
                steps,
                _curve(loss, stride, steps - 1),
                _curve(rank, stride, steps),
            )


def _curve(values: Sequence[float | None], stride: int, last: int) -> Curve:
    """Values at 0, stride, 2·stride … and the last of all at step `last`; none of a position without a search."""
    if not values:
        return []
    steps = [*range(0, stride * (len(values) - 1), stride), max(0, last)]
    return [(float(step), value) for step, value in zip(steps, values, strict=True) if value is not None]


def quantiles(curves: Iterable[Curve], last: int, points: int = 101) -> list[tuple[float, float, float, float]]:
    """(step, 10th percentile, median, 90th percentile) from step 0 to the last; a search that is over stays as it
    ended."""
    found = [curve for curve in curves if curve]
    steps = sorted({round(i * last / (points - 1)) for i in range(points)})
    rows = []
    for step in steps if found else ():
        values = sorted(_at(curve, step) for curve in found)
        rows.append((float(step), _share(values, 0.1), statistics.median(values), _share(values, 0.9)))
    return rows


def _at(curve: Curve, step: float) -> float:
    value = curve[0][1]
    for at, there in curve:
        if at > step:
            break
        value = there
    return value


def _share(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def budget(runs: dict[str, Run], steps: int) -> Run | None:
    """The search with that budget, or None where it was not made."""
    return runs.get(by_steps(steps))


def settings_of(run: Run) -> str:
    """K, C where it is known, and on how much."""
    s, prompts = run["settings"], run["prompts"]
    tokens = max((len(prompt["ids"]) for prompt in prompts), default=0)
    window = "" if s["candidates"] is None else f", C = {s['candidates']:,}"
    return f"K = {s['steps']:,}{window}, {len(prompts)} prompts × {tokens} tokens"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def shown(value: Any, form: str = "") -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else format(value, form)
