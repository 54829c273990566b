"""Figure 8: which tokens come out wrong."""

from __future__ import annotations

import unicodedata
from collections import Counter

from ..reports.boxed import name_of
from .data import Figure, Run, budget, percent, positions, settings_of
from .published import COMMONEST, FAILED_PROMPTS, FAILURES, SPACED
from .runs import SHORT
from .svg import BLUE, GREY, RED, Axis, Panel, sheet

KINDS = ("space-prefixed", "word piece", "punctuation", "digits", "other")
_MOST = 15
_LONGEST = 16  # letters of a token in a label


def kind_of(token: str) -> str:
    """The paper's broad categories: what a token's characters are, and whether a space stands before them."""
    if token.startswith(" ") and token.strip():
        return "space-prefixed"
    categories = {unicodedata.category(char)[0] for char in token}
    if categories and categories <= {"L", "M"}:
        return "word piece"
    if categories and categories <= {"N"}:
        return "digits"
    return "punctuation" if categories and categories <= {"P", "S"} else "other"


def problematic(runs: dict[str, Run], baseline: int) -> list[Figure]:
    """Figure 8: the tokens most often committed wrongly, and their kinds; of the baseline where it has errors."""
    run = next(
        (r for r in (budget(runs, baseline), runs.get(SHORT)) if r and any(not p.right for p in positions(r))), None
    )
    if run is None:
        run = runs.get(SHORT) or budget(runs, baseline)
    if run is None:
        return []
    found = [*positions(run)]
    wrong = [one.token for one in found if not one.right]
    top = Counter(wrong).most_common(_MOST)
    longest = max((count for _, count in top), default=1)
    names = Axis("", len(top) - 0.4 if top else 1, -0.6, names=[_label(token) for token, _ in top])
    left = Panel(f"the {len(top)} most often wrong", Axis("first errors", 0, longest, whole=True), names, 500, 340, 124)
    left.across([(float(count), float(i)) for i, (_, count) in enumerate(top)], BLUE, f"{len(wrong)} errors in all")
    shares = {kind: sum(kind_of(token) == kind for token in wrong) for kind in KINDS}
    usual = {kind: sum(kind_of(one.token) == kind for one in found) for kind in KINDS}
    right = Panel("by kind", Axis("", -0.6, len(KINDS) - 0.4, names=KINDS), Axis("share, %", 0, 100), 520, 340)
    right.bars([(i - 0.2, _percent(shares[k], len(wrong))) for i, k in enumerate(KINDS)], BLUE, "of errors", wide=0.36)
    right.bars(
        [(i + 0.2, _percent(usual[k], len(found))) for i, k in enumerate(KINDS)], GREY, "of all tokens", wide=0.36
    )
    right.marks([(-0.2, 100 * SPACED / FAILURES)], RED, f"the paper's: {SPACED} of {FAILURES} errors")
    commonest = ", ".join(f"“{token}”" for token, _ in top[:4]) or "–"
    rows = (
        ("errors", f"{len(wrong)} of {len(run['prompts'])} prompts", f"{FAILURES} of {FAILED_PROMPTS} prompts"),
        ("of which space-prefixed, %", percent(shares[KINDS[0]] / len(wrong)) if wrong else "–",
         percent(SPACED / FAILURES)),
        ("space-prefixed of all tokens, %", percent(usual[KINDS[0]] / max(1, len(found))), "–"),
        ("most often wrong", commonest, ", ".join(f"“{token}”" for token in COMMONEST)),
    )  # fmt: skip
    note = f"{settings_of(run)}; first errors only, since behind one every search has another prefix." + (
        ""
        if run is budget(runs, baseline)
        else " The baseline makes none here; this search is cut short so that it errs."
    )
    drawn = sheet("Figure 8: problematic tokens", [left, right], [note])
    return [Figure("figure8", "The most frequently mis-committed tokens, and their kinds", drawn, rows)]


def _label(token: str) -> str:
    """In quotes, with what acts or is not seen written out."""
    seen = "".join(char if (name := name_of(char)) is None else name for char in token)
    return f"“{seen[:_LONGEST]}”".replace(" ", "\N{NO-BREAK SPACE}")  # of several spaces a drawing would show one


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
