"""From prompts to a folder of figures: the searches that are missing, then all drawings, tables and the page."""

from __future__ import annotations

import html
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..inverter import Inverter
from ..model.load import BUNDLED
from ..reports.boxed import boxed
from ..reports.html import page, table
from ..storage.atomic import write_whole
from ..storage.finished import Finished
from ..types import InputError
from .data import Figure
from .losses import by_position, cumulative, stabilisation
from .ranks import at_errors, by_budget, trajectories
from .runs import SHORT_PROMPTS, Plan, Run, by_steps, papers_share, search
from .tokens import problematic

DATA, PAGE = "data.json", "index.html"
HEADER = ("figure", "what", "ours", "the paper's")


def plan_of(
    inverter: Inverter, lines: Sequence[str] | None, prompts: int, tokens: int, seed: int, candidates: int | None = None
) -> Plan:
    """Which searches on which prompts: of `lines` (None: the sentences that come with the package) those of enough
    tokens, in an order drawn by `seed`, each cut to `tokens`. InputError where there are too few."""
    source = bundled_lines() if lines is None else lines
    rows = [row[:tokens] for row in map(inverter.encode, source) if len(row) >= tokens]
    random.Random(seed).shuffle(rows)
    if len(rows) < prompts:
        raise InputError(
            f"{len(rows)} of {len(source)} prompts have {tokens} tokens, expected {prompts}: give fewer --prompts, "
            "fewer --tokens, or a larger --input"
        )
    more = rows[prompts : SHORT_PROMPTS * prompts]
    return Plan(rows[:prompts], more, candidates or papers_share(inverter.vocabulary.size), seed)


def bundled_lines() -> list[str]:
    """Sentences and prose of several kinds."""
    names = ("sentences.txt", "prose.txt")
    return [line for name in names for line in (BUNDLED / name).read_text(encoding="utf-8").splitlines() if line]


def make(
    inverter: Inverter,
    plan: Plan,
    folder: Path,
    about: dict[str, Any],
    step: Callable[[str], object] = lambda _: None,
) -> list[Figure]:
    """Make the searches that `folder` has not, and draw all figures into it. about: what the searches are of, which
    must be what those in the folder are of (else InputError); step: told of each search before it is made."""
    folder.mkdir(parents=True, exist_ok=True)
    setup = {
        **about,
        "fingerprint": inverter.decoder.fingerprint(),
        "layer": inverter.decoder.layer.name,
        "vocabulary": inverter.vocabulary.size,
        "candidates": plan.candidates,
        "prompts": len(plan.prompts),
        "tokens": len(plan.prompts[0]) if plan.prompts else 0,
        "seed": plan.seed,
        "token_ids": [*plan.prompts, *plan.more],
    }
    kept = Finished(folder / DATA, setup)
    for key, (strategy, prompts) in plan.searches().items():
        step(key)
        if key not in kept.rows:
            kept.add(key, search(inverter, strategy, prompts))
    return draw(kept.rows, plan, folder, setup)


def draw_traced(run: Run, folder: Path, about: dict[str, Any]) -> list[Figure]:
    """Figures 5 to 8 of what an inversion left behind (`traced.run_of`), as files and a page. about: what it is of."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = run["settings"]["steps"]
    runs = {by_steps(steps): run}
    made = [drawn for draws in (trajectories, cumulative, by_position, problematic) for drawn in draws(runs, steps)]
    _write(made, folder, {**about, "prompts": len(run["prompts"])})
    return made


def draw(runs: dict[str, Run], plan: Plan, folder: Path, setup: dict[str, Any]) -> list[Figure]:
    """All figures of which there are searches, as files, and the page that shows them."""
    made = [
        *stabilisation(runs, plan.baseline),
        *by_budget(runs, plan.budgets),
        *at_errors(runs, plan.baseline),
        *trajectories(runs, plan.longest),
        *cumulative(runs, plan.baseline),
        *by_position(runs, plan.baseline),
        *problematic(runs, plan.baseline),
    ]
    _write(made, folder, setup)
    return made


def _write(figures: Sequence[Figure], folder: Path, setup: dict[str, Any]) -> None:
    for figure in figures:
        write_whole(folder / f"{figure.name}.svg", figure.svg.encode())
    write_whole(folder / PAGE, _page(figures, setup).encode())


def rows_of(figures: Sequence[Figure]) -> list[tuple[str, str, str, str]]:
    """What the paper states beside ours, under `HEADER`."""
    return [(figure.name.removeprefix("figure"), *row) for figure in figures for row in figure.rows]


def _page(figures: Sequence[Figure], setup: dict[str, Any]) -> str:
    told = {key: value for key, value in setup.items() if key != "token_ids"}
    said = boxed(json.dumps(told, ensure_ascii=False)[1:-1])
    compared = table(HEADER, [[boxed(cell) for cell in row] for row in rows_of(figures)])
    drawn = [
        f"<div><h2>{html.escape(figure.title)}</h2>{figure.svg}"
        f'<p><a href="{figure.name}.svg">{figure.name}.svg</a></p></div>'
        for figure in figures
    ]
    return page("Figures of 2607.00852, ours beside the paper's", [f"<div><p>{said}</p>{compared}</div>", *drawn])
