"""Texts side by side: as they went in, and as they came out, each token marked by what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..reports.boxed import boxed
from .report import Report
from .settings import UNDEFENDED, Cell

_TEXTS, _TOKENS = 2, 96  # of an example, and of a text, that are shown
_WRONG = "w"
_SIGNS = {"a": "?", "n": "∅", _WRONG: "✗"}
_SPOKEN = {"a": "ambiguous", "n": "not found", _WRONG: "wrong"}


def examples(report: Report, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[dict[str, Any]]]:
    """Layer and precision that they are of: the last and the first; and a group a defence. rows: of the summary."""
    layer, precision = rows[-1]["layer"], rows[0]["precision"]
    own = [row for row in rows if (row["layer"], row["precision"]) == (layer, precision)]
    chosen = [row for row in own if row["defence"] == UNDEFENDED][:1]
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in own:
        if row["defence"] != UNDEFENDED:
            families.setdefault(row["defence"].partition(":")[0], []).append(row)
    chosen += [min(some, key=lambda row: abs(row["token_accuracy"]["value"] - 0.5)) for some in families.values()]
    groups = []
    for row in chosen:
        cell = Cell(row["layer"], row["precision"], row["defence"], row["strategy"])
        texts = [_beside(report.texts[line["text"]], line) for line in report.results[cell][:_TEXTS] if _shown(line)]
        name = "undefended" if row["defence"] == UNDEFENDED else row["defence"]
        groups.append({"name": f"{name}, {row['strategy']}", "texts": texts})
    return layer, precision, [group for group in groups if group["texts"]]


def _shown(line: Mapping[str, Any]) -> bool:
    return bool(line["exact"]) or "pieces" in line


def _beside(text: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    pieces = line.get("pieces", text["pieces"])
    found = line.get("token_ids", text["ids"])
    said = "word for word" if line["exact"] else f"{line['right']} of {line['tokens']} tokens right"
    if line["certified"]:
        said += f", {line['certified']} certified"
    tokens = [
        _token(piece, mark, token != true)
        for piece, mark, token, true in zip(pieces, line["status"], found, text["ids"], strict=True)
    ]
    more = len(tokens) - _TOKENS
    rest = Markup('<span class="ci"> … and {} more tokens</span>').format(more) if more > 0 else Markup()
    return {
        "original": Markup(boxed("".join(text["pieces"][:_TOKENS]))) + rest,
        "recovered": Markup().join(tokens[:_TOKENS]) + rest,
        "said": said,
    }


def _token(piece: str, mark: str, wrong: bool) -> Markup:
    """A token with its line, and a sign unless it is right and all that is known of it is in the line."""
    if mark == "-":
        return Markup('<span class="gap">▯<span class="vh"> not given away </span></span>')
    shown = Markup("<bdi>{}</bdi>").format(Markup(boxed(piece)))
    if not wrong:
        spoken = Markup('<span class="vh"> ({}) </span>').format(_SPOKEN[mark]) if mark in _SPOKEN else Markup()
        sign = Markup('<sup aria-hidden="true">{}</sup>').format(_SIGNS[mark]) if mark in _SIGNS else Markup()
        return Markup('<span class="tok {}">{}</span>{}{}').format(mark, shown, sign, spoken)
    both = " c" if mark == "c" else ""
    sign, spoken = ("✗✗", "certified and wrong") if mark == "c" else (_SIGNS[_WRONG], _SPOKEN[_WRONG])
    return Markup(
        '<span class="tok w{}">{}</span><sup aria-hidden="true">{}</sup><span class="vh"> ({}) </span>'
    ).format(both, shown, sign, spoken)
