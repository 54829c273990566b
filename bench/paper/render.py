"""Finished rows as markdown: ours beside the paper's. What was not measured is a dash, never a guess."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import published

Rows = dict[str, dict[str, Any]]
FIRST = "nearest row is right"  # of all tokens: what C = 1 would recover, whatever C is
LOOPS = {"SIPIT": "mode: official sipit", "paper loop": "mode: paper loop, baseline"}
MODES = {
    "auto (draft, verify, repair)": "mode: auto",
    "speculative": "mode: speculative",
    "sipit": "mode: sipit",
    "sipit, released settings": "mode: sipit, released settings",
    "sipit, 1 lane": "mode: sipit, 1 lane",
    "continuous fast": "fast, c4",
    "continuous baseline": "baseline, c4",
    "continuous high-accuracy": "high-accuracy, c4",
    "continuous baseline, 1 lane": "mode: continuous baseline, 1 lane",
    "official SIPIT (unbatched)": "mode: official sipit",
    "the paper's loop, baseline (unbatched)": "mode: paper loop, baseline",
    "VMA (unbatched)": "mode: vma",
}


def markdown(rows: Rows, setup: dict[str, Any]) -> str:
    """All tables of which a row was measured, under the setup they share."""
    parts = [
        "# Tables of 2607.00852, ours beside the paper's",
        "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in setup.items()),
        *(part for make in (_points, _accuracy, _runtime, _comparison, _modes, _ablations) if (part := make(rows))),
    ]
    return "\n\n".join(parts) + "\n"


def _points(rows: Rows) -> str:
    measured = [
        (name, *published.OPERATING_POINTS[name], rows.get(f"{name}, c4")) for name in published.OPERATING_POINTS
    ]
    if not any(row for *_, row in measured):
        return ""
    body = [[name, f"{K:,}", f"{C:,}", _figure(row, "steps_per_token", ",.0f")] for name, K, C, row in measured]
    return _table("Table 1: operating points", ["configuration", "K", "C", "steps a token, ours"], body)


def _accuracy(rows: Rows) -> str:
    body = []
    for (name, source), (exact, similarity, texts) in published.ACCURACY.items():
        row = rows.get(f"{name}, {source}")
        ours = [_percent(row), _figure(row, "similarity", ".3f"), _figure(row, "first_try", ".1%")]
        ours.append(_size(row))
        body.append([name, source, *ours, f"{exact:.1f}", f"{similarity:.3f}", str(texts)])
    head = [
        "configuration",
        "prompts",
        "EM %",
        "similarity",
        FIRST,
        "N",
        "EM %, paper",
        "similarity, paper",
        "N, paper",
    ]
    return _table("Table 2: accuracy", head, body, needed=2)


def _runtime(rows: Rows) -> str:
    body = []
    for (name, source), seconds in published.SECONDS.items():
        row = rows.get(f"{name}, {source}")
        body.append([name, source, _figure(row, "seconds_per_token", ".3g"), _size(row), f"{seconds:.2f}"])
    head = ["configuration", "prompts", "s/token", "N", "s/token, paper (A6000)"]
    return _table("Table 3: runtime", head, body, needed=2)


def _comparison(rows: Rows) -> str:
    keys = {"baseline": "baseline, c4", "high-accuracy": "high-accuracy, c4", "official sipit": LOOPS["SIPIT"]}
    body = []
    for name, (exact, similarity, seconds) in published.COMPARISON.items():
        row = rows.get(keys[name])
        ours = [_percent(row), _figure(row, "similarity", ".3f"), _figure(row, "seconds_per_token", ".3g"), _size(row)]
        body.append([name, *ours, f"{exact:.1f}", f"{similarity:.3f}", f"{seconds:.2f}"])
    paper = ["EM %, paper", "similarity, paper", "s/token, paper"]
    head = ["implementation", "EM %", "similarity", "s/token", "N", *paper]
    return _table("Tables 4 and 5: against the SIPIT reference", head, body, needed=1)


def _modes(rows: Rows) -> str:
    body = []
    for name, key in MODES.items():
        if (row := rows.get(key)) is None:
            continue
        faster = [
            f"{rows[loop]['seconds_per_token'] / row['seconds_per_token']:,.3g} ×" if loop in rows else "–"
            for loop in LOOPS.values()
        ]
        cost = [_figure(row, f"{way}_tokens_per_token", ",.4g") for way in ("forward", "backward")]
        detector = _figure(row, "detector_right", ".3f")
        body.append(
            [
                name,
                str(row["lanes"]),
                _size(row),
                f"{row['exact_match']:.3f}",
                detector,
                f"{row['seconds_per_token']:.3g}",
                *cost,
                *faster,
            ]
        )
    head = ["mode", "lanes", "N", "exact match", "detector right", "s/token", "forward tokens/token"]
    return _table("All modes", [*head, "backward tokens/token", *(f"speed-up over {name}" for name in LOOPS)], body)


def _ablations(rows: Rows) -> str:
    body = []
    for key, row in rows.items():
        if not key.startswith("ablation: "):
            continue
        name, _, value = key.removeprefix("ablation: ").partition(" = ")
        told = published.ABLATIONS.get((name, int(value))) if value.isdecimal() else None
        best = value in published.ABLATION_BEST.get(name, "").split(", ")
        body.append(
            [
                name,
                value,
                _percent(row),
                _figure(row, "similarity", ".3f"),
                _figure(row, "first_try", ".1%"),
                _figure(row, "steps_per_token", ",.0f"),
                _figure(row, "seconds_per_token", ".3g"),
                told or ("best" if best else "–"),
            ]
        )
    head = ["varied", "value", "EM %", "similarity", FIRST, "steps a token", "s/token", "EM %, paper"]
    return _table("Ablations: one setting of the baseline at a time", head, body)


def _percent(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{100 * row['exact_match']:.1f}"


def _figure(row: dict[str, Any] | None, name: str, form: str) -> str:
    return "–" if row is None or row.get(name) is None else format(row[name], form)


def _size(row: dict[str, Any] | None) -> str:
    """Prompts × tokens of each."""
    return "–" if row is None else f"{row['texts']} × {row['tokens']}"


def _table(title: str, head: Sequence[str], body: Sequence[Sequence[str]], needed: int | None = None) -> str:
    """Markdown, or nothing when no row has a figure of ours in column `needed` (None: when there is no row)."""
    filled: Callable[[Sequence[str]], bool] = lambda line: needed is None or line[needed] != "–"  # noqa: E731
    if not any(map(filled, body)):
        return ""
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]
    return f"## {title}\n\n" + "\n".join(lines)
