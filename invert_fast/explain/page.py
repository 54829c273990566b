"""An explanation as people look at it: cells of a table, and HTML in which no token acts or hides."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from ..reports.boxed import boxed
from ..reports.html import POSITIONS_MOST, of_recovery, page, table
from .explanation import Explanation, Position

HEADER = ("#", "token", "draft", "lens", "prior", "chance", "residual", "tolerated", "margin", "nearest others", "is")
LEGEND = (
    "draft: what the lens reads off the states (=: the token itself); lens, prior: how many tokens stand before it in "
    "that order; chance: that the model gives it; residual: of its state, and what is tolerated; margin: how much "
    "further away the nearest other token is that was tried"
)
_SHOWN = 3  # rivals of a position in a table


def cells(one: Position, reasons: Sequence[str], rivals: int = _SHOWN) -> list[str]:
    """The row of a position under `HEADER`; reasons: the list that its number behind the status counts in."""
    others = ", ".join(f"{said(rival.token_id, rival.token)} {rival.residual:.2g}" for rival in one.rivals[:rivals])
    instead = "" if one.found_id == one.token_id else f" {said(one.found_id, one.found)}"
    return [
        str(one.position),
        said(one.token_id, one.token),
        "=" if one.draft_id == one.token_id else said(one.draft_id, one.draft),
        str(one.lens_rank),
        "–" if one.prior_rank is None else str(one.prior_rank),
        "–" if one.prior_probability is None else f"{one.prior_probability:.2g}",
        f"{one.residual:.1e}",
        f"{one.tolerance:.1e}",
        f"{one.margin:.2g}" if math.isfinite(one.margin) else "–",
        others,
        f"{one.status.label}{instead} ({reasons.index(one.reason) + 1})",
    ]


def said(token_id: int, token: str | None) -> str:
    """A token in quotes; its id where it is no text by itself, such as some bytes of a character."""
    return f"[{token_id}]" if not token or "\ufffd" in token else f"“{token}”"


def reasons_of(explanation: Explanation) -> list[str]:
    """Those that occur, in their order."""
    return [*dict.fromkeys(one.reason for one in explanation)]


def counted_reasons(explanation: Explanation) -> list[str]:
    """A line for each: its number, itself, and how many positions it is of."""
    every = reasons_of(explanation)
    counts = [sum(one.reason == reason for one in explanation) for reason in every]
    places = [f"{count} position{'s' if count > 1 else ''}" for count in counts]
    return [f"({i}) {reason}: {place}" for i, (reason, place) in enumerate(zip(every, places, strict=True), 1)]


def setup_of(explanation: Explanation) -> str:
    """Of what states, and by which lens."""
    stored = f"{explanation.states_dtype} states of a {explanation.compute_dtype} pass"
    return f"{explanation.layer}, {stored}, {explanation.lens} lens"


def of_explanation(explanation: Explanation) -> str:
    """The marked text, the table, and the reasons under it."""
    shown, why = explanation.positions[:POSITIONS_MOST], reasons_of(explanation)
    rows = [[boxed(cell) for cell in cells(one, why, len(one.rivals))] for one in shown]
    more = len(explanation) - len(shown)
    cut = f"<p>{more} more positions are not shown.</p>" if more else ""
    listed = "".join(f"<li>{boxed(line)}</li>" for line in counted_reasons(explanation))
    return (
        f"<div><p>{html.escape(setup_of(explanation))}</p>{of_recovery(explanation.recovery)}"
        f"{table(HEADER, rows) if rows else ''}{cut}<ul>{listed}</ul><small>{html.escape(LEGEND)}</small></div>"
    )


def whole_page(title: str, explanations: Iterable[Explanation]) -> str:
    """A file of its own, of several texts."""
    return page(title, (of_explanation(one) for one in explanations))
