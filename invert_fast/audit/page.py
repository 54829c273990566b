"""The page of an audit: one HTML file that asks for nothing, made of what summary.json has and a few of the texts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..reports.boxed import boxed
from ..storage.visible import visible
from . import figures
from .advice import advice, nats, percent
from .examples import examples
from .figures import Line, Point
from .report import Report
from .settings import UNDEFENDED
from .statistics import ROUNDS
from .verdict import verdict

_HERE = Path(__file__).parent
_WRITTEN = {
    "percent": percent,
    "number": lambda v: f"{v:.3f}",
    "cost": lambda v: f"{v:,.2f}" if v < 100 else f"{v:,.0f}",
    "nats": nats,
}


def page(report: Report, summary: Mapping[str, Any]) -> str:
    """The HTML. Text of the model and of others goes through `boxed` or `visible`, and autoescape."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "seen": visible,
        "boxed": lambda text: Markup(boxed(text)),
        "attr_of": lambda value, written: _WRITTEN[written](value),
    }
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = _ranked(summary["cells"])
    layer, precision, shown = examples(report, rows)
    broken = summary["broken"]
    return environment.from_string((_HERE / "page.html.j2").read_text(encoding="utf-8")).render(
        **{name: value for name, value in summary.items() if name not in ("cells", "broken")},
        cells=rows,
        broken=broken,
        verdict=verdict(summary),
        advice=advice(summary),
        matrices=_matrices(rows),
        tradeoff=_tradeoff(rows),
        leaves_out=any(row["predicted"] is not None and row["predicted"] < 1 for row in rows),
        loss_texts=max((row["loss_texts"] for row in rows), default=0),
        kinds_figure=_missed("kinds", "Share of tokens missed, by kind", [(k["kind"], k) for k in broken["kinds"]]),
        crowds_figure=_missed(
            "crowds",
            "Share of tokens missed, by distance to the nearest row",
            [(f"{c['from']:.2f} to {c['to']:.2f}", c) for c in broken["crowds"]],
        ),
        examples=shown,
        example_layer=layer,
        example_precision=precision,
        facts=_facts(summary),
        rounds=f"{ROUNDS:,}",
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _ranked(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With the place of each defence in the order that it was given in: no alphabet knows strengths."""
    order = list(dict.fromkeys(row["defence"] for row in cells))
    return [{**row, "rank": order.index(row["defence"])} for row in cells]


def _matrices(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table a precision: a row a defence and strategy, a column a layer."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    tables = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        own = [row for row in rows if row["precision"] == precision]
        lines: dict[str, dict[str, Mapping[str, Any]]] = {}
        plain = {row["strategy"] for row in own if row["defence"] == UNDEFENDED}
        for row in own:
            name = row["defence"] if row["defence"] != UNDEFENDED else "undefended"
            name += f", {row['strategy']}" if row["defence"] == UNDEFENDED and len(plain) > 1 else ""
            lines.setdefault(name, {})[row["layer"]] = row
        shown = [
            {
                "name": name,
                "cells": [
                    {"value": by[layer]["token_accuracy"]["value"], "wrong": by[layer]["certified_wrong"]}
                    for layer in layers
                ],
            }
            for name, by in lines.items()
        ]
        tables.append({"precision": precision, "layers": layers, "rows": shown})
    return tables


def _tradeoff(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The two curves of each layer, the last one first, of the first precision; without defences none."""
    found = []
    precision = rows[0]["precision"]
    for layer in reversed(list(dict.fromkeys(row["layer"] for row in rows))):
        own = [row for row in rows if (row["layer"], row["precision"]) == (layer, precision)]
        families: dict[str, list[Mapping[str, Any]]] = {}
        for row in own:
            if row["defence"] != UNDEFENDED and row["loss_added"]:
                families.setdefault(row["defence"].partition(":")[0], []).append(row)
        if not families:
            continue
        place = f"{layer}, {precision}"
        name = f"f-{layer.replace(':', '-').replace('_', '-')}"
        y = figures.shares("tokens that come back")
        losses = [row["loss_added"]["value"] for some in families.values() for row in some]
        discrete = [row["discrete_loss"] for some in families.values() for row in some if row["discrete_loss"]]
        found.append(
            {
                "layer": layer,
                "precision": precision,
                "key": figures.key([*families]),
                "loss": figures.lines(
                    f"{name}-loss",
                    f"Tokens that come back against next-token loss added, {place}",
                    _told(families, lambda row: f"{nats(row['loss_added']['value'])} nats"),
                    [Line(k, [_point(row, row["loss_added"]["value"]) for row in v]) for k, v in families.items()],
                    figures.stretched("next-token loss added (nats)", losses, 0.1),
                    y,
                ),
                "discrete": figures.lines(
                    f"{name}-discrete",
                    f"Tokens that come back against the discrete loss, {place}",
                    _told(families, lambda row: f"discrete loss {row['discrete_loss'] or 0:.2g}"),
                    [
                        Line(k, [_point(row, row["discrete_loss"]) for row in v if row["discrete_loss"]])
                        for k, v in families.items()
                    ],
                    figures.powers("discrete loss", discrete),
                    y,
                ),
            }
        )
    return found


def _point(row: Mapping[str, Any], x: float) -> Point:
    share = row["token_accuracy"]
    return Point(x, share["value"], row["defence"].partition(":")[2], share["low"], share["high"])


def _told(families: Mapping[str, Sequence[Mapping[str, Any]]], also) -> str:
    return "; ".join(
        f"{row['defence']}: {percent(row['token_accuracy']['value'])} of the tokens, {also(row)}"
        for some in families.values()
        for row in some
    )


def _missed(name: str, title: str, parts: Sequence[tuple[str, Mapping[str, Any]]]) -> Markup | None:
    if not parts:
        return None
    rows = [(said, Point(0, p["share"][0], percent(p["share"][0]), p["share"][1], p["share"][2])) for said, p in parts]
    told = "; ".join(f"{said}: {percent(p['share'][0])} of {p['tokens']:,}" for said, p in parts)
    return figures.bars(name, title, told, rows, max(max(point.high or 0.0, point.y) for _, point in rows))


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, model = summary["settings"], summary["model"]
    left_out = summary["texts_without_tokens"]
    return [
        ("Model", f"{model['name']}, {model['fingerprint']}"),
        ("Forward passes", f"{summary['dtype']} on {summary['device']}, {summary['threads']} threads"),
        ("Texts", f"{summary['texts']}" + (f"; {left_out} of no tokens were left out" if left_out else "")),
        ("Tokens of a text", f"at most {settings['max_tokens']}" if settings["max_tokens"] else "all"),
        ("Seed", str(settings["seed"])),
        ("Input (SHA-256 of its token ids)", summary["input"][:16]),
        *((name, str(version)) for name, version in summary["versions"].items()),
    ]
