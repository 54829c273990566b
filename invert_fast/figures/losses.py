"""Figures 1, 2, 6 and 7: losses on the way, and what they say at the end."""

from __future__ import annotations

import math
import statistics

from .data import Figure, Run, budget, percent, positions, quantiles, settings_of, shown
from .published import DECADES, FLOOR, LOSS_THRESHOLD
from .runs import PLAIN, SHORT
from .svg import BLUE, GREEN, GREY, RED, SERIES, Axis, Panel, around, sheet

_CURVES = 40  # of single tokens, at most: more are one blot
_LEAST = 1e-16  # of a loss that is shown: fp32 knows no smaller one of such states


def stabilisation(runs: dict[str, Run], baseline: int) -> list[Figure]:
    """Figures 1 and 2: plain Adam against Adam with cosine annealing and clipping."""
    pair = [(PLAIN, "plain Adam", RED), (f"K = {baseline}", "with cosine annealing and clipping", BLUE)]
    if any(key not in runs for key, *_ in pair):
        return []
    found = {key: [one.loss for one in positions(runs[key])] for key, *_ in pair}
    every = [value for curves in found.values() for curve in curves for _, value in curve]
    y, panels = around(every, "MSE of the state (log)", log=True), []
    for key, name, colour in pair:
        panel = Panel(name, Axis("optimisation step", 0, baseline), y)
        for curve in found[key][:_CURVES]:
            panel.line(curve, colour, wide=0.8, seen=0.35)
        median = [(step, middle) for step, _, middle, _ in quantiles(found[key], baseline)]
        panel.line(median, "#222", "median of all tokens", wide=2.2)
        panel.rule(GREY, "stopping threshold 1e-4", y=LOSS_THRESHOLD)
        panels.append(panel)
    spikes = {key: _spike(found[key]) for key in found}
    note = (
        f"{settings_of(runs[PLAIN])}, both. Curves of the first {_CURVES} tokens, a point every "
        f"{runs[PLAIN]['settings']['stride']} steps; the median holds a token that stopped early at its last loss."
    )
    first = Figure(
        "figure1",
        "Per-token loss, Adam without and with stabilisation",
        sheet("Figure 1: loss of each token's search", panels, [note]),
        (
            ("highest loss over the first, plain Adam (median)", f"{spikes[PLAIN]:.2g} ×", "spikes early"),
            ("the same, stabilised", f"{spikes[pair[1][0]]:.2g} ×", "smooth and monotone"),
        ),
    )
    return [first, _bars(runs, pair)]


def _bars(runs: dict[str, Run], pair: list[tuple[str, str, str]]) -> Figure:
    panels = []
    for label, field in (("exact match, %", "exact"), ("mean similarity", "similarity")):
        scale = 100 if field == "exact" else 1
        panel = Panel(label, Axis("", -0.6, 1.6, names=["plain", "stabilised"]), Axis(label, 0, scale), 340, 260)
        for i, (key, name, colour) in enumerate(pair):
            panel.bars([(i, scale * runs[key][field])], colour, f"{name}: {scale * runs[key][field]:.3g}", wide=0.6)
        panels.append(panel)
    steps = {key: statistics.mean(one.steps for one in positions(runs[key])) for key, *_ in pair}
    rows = [
        (f"{name}: EM %, similarity, steps a token",
         f"{percent(runs[key]['exact'])}, {runs[key]['similarity']:.3f}, {steps[key]:,.0f}", said)
        for (key, name, _), said in zip(pair, ("lower on both", "higher on both"), strict=True)
    ]  # fmt: skip
    note = f"{settings_of(runs[PLAIN])}, both. Stabilised: a rate that falls on a cosine, gradients of norm 1 at most."
    drawn = sheet("Figure 2: what stabilisation is worth", panels, [note])
    return Figure("figure2", "Exact match and similarity without and with stabilisation", drawn, tuple(rows))


def _spike(curves: list[list[tuple[float, float]]]) -> float:
    """By how much a search exceeds the loss that it starts with, median."""
    found = [max(value for _, value in curve) / max(curve[0][1], 1e-30) for curve in curves if curve]
    return statistics.median(found) if found else math.nan


def cumulative(runs: dict[str, Run], baseline: int) -> list[Figure]:
    """Figure 6: the running sum of the discrete loss, of prompts that came out right and wrong."""
    chosen = [run for run in (budget(runs, baseline), runs.get(SHORT)) if run is not None]
    if not chosen:
        return []
    prompts = [prompt for run in chosen for prompt in run["prompts"]]
    every = [max(v, _LEAST) for prompt in prompts for v in prompt["cumulative"] if v is not None]
    y = around(every, "cumulative discrete loss (log)", log=True)
    panels, gaps, floors = [], [], []
    for run in chosen:
        length = max(len(p["cumulative"]) for p in run["prompts"])
        panel = Panel(settings_of(run), Axis("token position", 1, max(2, length), whole=True), y, 460)
        ends = {}
        for right, name, colour in ((True, "recovered exactly", BLUE), (False, "at least one error", RED)):
            some = [p["cumulative"] for p in run["prompts"] if (p["wrong"] is None) == right]
            for line in some:
                points = [(t + 1.0, max(v, _LEAST)) for t, v in enumerate(line) if v is not None]
                panel.line(points, colour, f"{name}: {len(some)}", wide=0.8, seen=0.4)
            if some:
                means = [statistics.mean(line[t] or 0.0 for line in some) for t in range(length)]
                ends[right] = means[-1]
                panel.line(
                    [(t + 1.0, max(v, _LEAST)) for t, v in enumerate(means)],
                    GREEN, "mean of each", wide=2.4, dash="" if right else "6 3",
                )  # fmt: skip
        panels.append(panel)
        floors += [ends[True]] if True in ends else []
        if len(ends) == 2:
            gaps.append(math.log10(max(ends[False], _LEAST) / max(ends[True], _LEAST)))
    detected = sum(p["detected"] == p["wrong"] for p in prompts)
    note = "No reference is used: a wrong token lifts the sum at its own position." + (
        " Left the baseline, right a search that is cut short so that it errs." if panels[1:] else ""
    )
    rows = (
        ("mean sum of right prompts at the end", shown(min(floors, default=None), ".1e"), f"≈ {FLOOR:.0e}"),
        ("decades between wrong and right at the end", shown(max(gaps, default=None), ".1f"), f"≈ {DECADES}"),
        ("prompts whose first error the loss names", f"{detected} of {len(prompts)}", "–"),
    )
    drawn = sheet("Figure 6: cumulative discrete loss", panels, [note])
    return [Figure("figure6", "Cumulative discrete loss by position", drawn, rows)]


def by_position(runs: dict[str, Run], baseline: int) -> list[Figure]:
    """Figure 7: the loss on the way, by position in the prompt."""
    if (run := budget(runs, baseline)) is None:
        return []
    found: dict[int, list] = {}
    for one in positions(run):
        found.setdefault(one.position, []).append(one)
    every = [value for some in found.values() for one in some for _, value in one.loss]
    panel = Panel(settings_of(run), Axis("optimisation step", 0, baseline),
                  around(every, "MSE of the state (log)", log=True), 640, 360)  # fmt: skip
    medians = {}
    for t, some in sorted(found.items()):
        rows, colour = quantiles([one.loss for one in some], baseline), SERIES[t % len(SERIES)]
        panel.band([(step, low, high) for step, low, _, high in rows], colour)
        dash = "" if t < len(SERIES) else "5 3"
        panel.line([(step, middle) for step, _, middle, _ in rows], colour, f"position {t + 1}", dash=dash)
        medians[t] = statistics.median(one.steps for one in some)
    panel.rule("#222", "stopping threshold 1e-4", y=LOSS_THRESHOLD)
    fastest = min(medians, key=medians.__getitem__)
    later = [medians[t] for t in sorted(medians)]
    above = [t + 1 for t in found if statistics.median(one.loss[-1][1] for one in found[t]) >= LOSS_THRESHOLD]
    rows = (
        ("position of fewest steps (median)", f"{fastest + 1} ({medians[fastest]:,.0f} steps)", "1"),
        ("median steps by position", ", ".join(f"{v:,.0f}" for v in later), "rise with the position"),
        ("positions whose median stays above 1e-4", ", ".join(map(str, above)) or "none", "all"),
    )
    note = "Median and the 10th to 90th percentile; a token that stopped early stays at its last loss."
    drawn = sheet("Figure 7: loss by position in the prompt", [panel], [note])
    return [Figure("figure7", "Median loss against step, by token position", drawn, rows)]
