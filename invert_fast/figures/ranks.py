"""Figures 3, 4 and 5: what the budget is worth, and where the true token stands on the way."""

from __future__ import annotations

import statistics
from collections import Counter

from .data import Figure, Run, budget, percent, positions, quantiles, settings_of, shown
from .published import EXACT_BY_STEPS, FIRST_BY, OPERATING_POINTS, RIGHT, VOCABULARY, WRONG
from .runs import SHORT
from .svg import BLUE, GREEN, GREY, ORANGE, RED, Axis, Panel, around, sheet

_BARS = 40  # ranks that have a bar of their own; larger ones share the last


def by_budget(runs: dict[str, Run], budgets: tuple[int, ...]) -> list[Figure]:
    """Figure 3: exact match against the step budget K."""
    found = {steps: run for steps in budgets if (run := budget(runs, steps)) is not None}
    if not found:
        return []
    x = around([*found, *EXACT_BY_STEPS], "step budget K (log)", log=True)
    panel = Panel("exact match", x, Axis("exact match, %", 0, 100), 560)
    line = [(float(steps), 100 * run["exact"]) for steps, run in found.items()]
    panel.line(line, BLUE, "ours", wide=2.2)
    for point in line:
        panel.line([point, point], BLUE, wide=6)
    paper = [(float(steps), exact) for steps, exact in EXACT_BY_STEPS.items()]
    panel.line(paper, GREY, wide=1.0, dash="4 3")
    panel.marks(paper, RED, f"the paper's, on GPT-2 (V {VOCABULARY:,}, C = 2,000)")
    some = next(iter(found.values()))
    sizes = f"C = {some['settings']['candidates']:,}, {len(some['prompts'])} prompts × {len(some['prompts'][0]['ids'])}"
    note = f"{sizes} tokens. C is the paper's share of the vocabulary, 4 %."
    rows = [
        (f"exact match at K = {steps:,}, %",
         percent(found[steps]["exact"]) if steps in found else "–",
         shown(EXACT_BY_STEPS.get(steps)))
        for steps in sorted({*found, *EXACT_BY_STEPS})
    ]  # fmt: skip
    drawn = sheet("Figure 3: exact match against the step budget", [panel], [note])
    return [Figure("figure3", "Exact match against the step budget K", drawn, tuple(rows))]


def at_errors(runs: dict[str, Run], baseline: int) -> list[Figure]:
    """Figure 4: the rank of the true token at the first wrongly committed position."""
    panels, rows = [], []
    for run in (budget(runs, baseline), runs.get(SHORT)):
        if run is None:
            continue
        ranks = [int(one.rank[-1][1]) for one in positions(run) if not one.right and one.rank]
        counts = Counter(min(rank, _BARS) for rank in ranks)
        most = max([5, *counts.values()])
        panel = Panel(settings_of(run), Axis("rank of the true token (L1)", -0.5, _BARS + 0.5),
                      Axis("first errors", 0, most, whole=True))  # fmt: skip
        panel.bars([(float(rank), float(count)) for rank, count in counts.items()], BLUE,
                   f"{len(ranks)} prompts with an error" if ranks else "no prompt has an error")  # fmt: skip
        if ranks:
            panel.rule(RED, f"median {statistics.median(ranks):g}", x=min(_BARS, statistics.median(ranks)))
            near = sum(rank <= 10 for rank in ranks) / len(ranks)
            rows.append((f"first errors with the true token within rank 10, % ({settings_of(run)})", percent(near),
                         "heavily concentrated near rank 0"))  # fmt: skip
        else:
            rows.append((f"prompts with an error ({settings_of(run)})", "none", "33 % (Table 2)"))
        panels.append(panel)
    if not panels:
        return []
    note = (
        f"Rank of the true token among all rows, by distance to the final proxy (0: the nearest); {_BARS} stands for "
        "that and more. Left the baseline, right a search that is cut short and tries one candidate, so that it errs."
    )
    drawn = sheet("Figure 4: rank of the true token at the first error", panels, [note])
    return [Figure("figure4", "Rank of the true token at the first wrong position", drawn, tuple(rows))]


def trajectories(runs: dict[str, Run], longest: int) -> list[Figure]:
    """Figure 5: rank trajectories of tokens committed rightly and wrongly, with the operating points."""
    panels, rows = [], []
    for run, is_long in ((budget(runs, longest), True), (runs.get(SHORT), False)):
        if run is None:
            continue
        found = [one for one in positions(run) if one.rank]
        ranked = [value for one in found for _, value in one.rank]
        last = run["settings"]["steps"]
        y = around([1, *(v + 1 for v in ranked)], "rank of the true token + 1 (log)", log=True)
        panel = Panel(settings_of(run), Axis("optimisation step", 0, last), y, 460)
        firsts: dict[bool, float | None] = {}
        for right, name, colour, dash in ((True, "committed rightly", BLUE, ""), (False, "wrongly", RED, "6 3")):
            some = [one.rank for one in found if one.right == right]
            rows_of = quantiles(some, last)
            panel.band([(step, low + 1, high + 1) for step, low, _, high in rows_of], colour)
            panel.line([(step, middle + 1) for step, _, middle, _ in rows_of], colour, f"{name}: {len(some)} tokens",
                       wide=2.2, dash=dash)  # fmt: skip
            firsts[right] = next((step for step, _, middle, _ in rows_of if middle < 1), None)
        if is_long:
            (fast, C), (high, most) = OPERATING_POINTS["fast"], OPERATING_POINTS["high-accuracy"]
            if fast <= last:
                panel.rule(ORANGE, f"Fast: K = {fast}, C = {C} in the paper", x=fast)
            if high <= last:
                panel.rule(GREEN, f"High-accuracy: K = {high:,}, C = {most:,} in the paper", x=high)
            counts = [sum(one.right == right for one in found) for right in (True, False)]
            rows += [
                (f"tokens committed rightly, wrongly (K = {last:,})", f"{counts[0]}, {counts[1]}", f"{RIGHT}, {WRONG}"),
                ("step at which the median right token is nearest", shown(firsts[True], ",.0f"),
                 f"well before {FIRST_BY}"),
            ]  # fmt: skip
        else:
            rows.append(
                (
                    f"step at which the median wrong token is nearest ({settings_of(run)})",
                    shown(firsts[False], ",.0f"),
                    "never",
                )
            )
        panels.append(panel)
    if not panels:
        return []
    note = (
        "Median and the 10th to 90th percentile; tokens up to the first error of each prompt. A search that stopped "
        "early stays at its last rank." + (" Right: a search that is cut short, so that it errs." if panels[1:] else "")
    )
    drawn = sheet("Figure 5: rank trajectories and operating points", panels, [note])
    return [Figure("figure5", "Rank trajectories of the true token", drawn, tuple(rows))]
