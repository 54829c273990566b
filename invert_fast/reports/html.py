"""Recoveries, scores and diagnoses as a notebook shows them: each token marked by what is known of it.

Never by colour alone: each kind has its own line, and all but certified tokens a sign behind them, so that it reads the
same in grey, printed or spoken. Styles are inline and there is no script: that is what notebooks let through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..types import Recovery, Status
from .boxed import attribute, boxed
from .pieces import Piece, pieces

if TYPE_CHECKING:
    from .score import Score, ScoredText

TOKENS_MOST, TEXTS_MOST, POSITIONS_MOST = 2000, 50, 500  # a page of more is not read; `to_pandas` has them all
WRONG = "wrong"
# name → (the sign behind a token, its line, its colour)
KINDS = {
    Status.CERTIFIED.label: ("", "border-bottom:1px solid", "#2e7d32"),
    Status.BEST_MATCH.label: ("≈", "border-bottom:2px dotted", "#b26a00"),
    Status.AMBIGUOUS.label: ("?", "border-bottom:4px double", "#6a1b9a"),
    Status.NOT_FOUND.label: ("∅", "border-bottom:2px dashed", "#c62828"),
    Status.AFTER_FAILURE.label: ("…", "border-bottom:1px dashed", "#757575"),
    WRONG: ("✗", "text-decoration:line-through;border-bottom:3px solid", "#c62828"),
}
_WORST_LAST = [Status.CERTIFIED, Status.AMBIGUOUS, Status.BEST_MATCH, Status.NOT_FOUND, Status.AFTER_FAILURE]
_PLAIN_BOX = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;line-height:1.9"
_CELL = "text-align:left;vertical-align:top;padding:2px 8px"


def of_recovery(found: Recovery) -> str:
    """One recovered text, its tokens marked, with a legend of the marks that occur."""
    seconds, tokens = found.cost.seconds, len(found.token_ids)
    share = f"{int((found.status == Status.CERTIFIED).sum())} of {tokens} tokens certified"
    mended = "" if found.mended is None else f"<p>Mended: {boxed(found.mended.sentence)}.</p>"
    legend = _legend(_kinds(found, {}))
    return f"<div>{_marked(found, {})}<small>{share}; {seconds:.3g} s. {legend}</small>{mended}</div>"


def of_score(score: Score) -> str:
    """The figures, and each text with its wrong tokens struck out and the right ones behind them."""
    figures = [("prompts", str(score.prompts))]
    figures += [
        (name, "–" if value is None else f"{value:.4f}")
        for name, value in (
            ("exact match", score.exact_match),
            ("token accuracy", score.token_accuracy),
            ("similarity", score.similarity),
            ("certified", score.certified),
        )
    ]
    texts = score.texts[:TEXTS_MOST]
    kinds = {kind for one in texts if one.recovery is not None for kind in _kinds(one.recovery, one.wrong)}
    rows = [[str(i), "yes" if one.exact else "no", _beside(one)] for i, one in enumerate(texts)]
    more = len(score.texts) - len(texts)
    return (
        f"<div>{table([name for name, _ in figures], [[value for _, value in figures]])}"
        f"{table(['text', 'exact', 'recovered'], rows) if rows else ''}"
        f"<small>{f'{more} more texts are not shown. ' if more else ''}{_legend(kinds) if kinds else ''}</small></div>"
    )


def of_diagnosis(
    verdict: str,
    command: tuple[str, str],
    notes: Sequence[str],
    header: Sequence[str],
    tried: Sequence[Sequence[str]],
    recovery: Recovery | None,
) -> str:
    """A `Diagnosis`: the verdict, what else showed, what was tried, and the rows that were inverted under it."""
    verb, options = command
    option = f" {verb.capitalize()} with <code>{boxed(options)}</code>." if options else ""
    listed = f"<ul>{''.join(f'<li>{boxed(note)}</li>' for note in notes)}</ul>" if notes else ""
    compared = table(header, [[boxed(cell) for cell in row] for row in tried]) if tried else ""
    rows = "" if recovery is None else of_recovery(recovery)
    return f"<div><p>{boxed(verdict)}.{option}</p>{listed}{compared}{rows}</div>"


def page(title: str, parts: Iterable[str]) -> str:
    """A file of its own: the title, and parts that are HTML already. It asks for nothing and runs nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{attribute(title)}</title>'
    )
    body = "<hr>".join(parts)
    style = "font:15px/1.5 sans-serif;max-width:90em;margin:2em auto;padding:0 1em;color:#222;background:#fff"
    body = f'<body style="{style}"><h1>{boxed(title)}</h1>{body}</body>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


def _beside(one: ScoredText) -> str:
    """A text as it was recovered; where it is not marked by token, its reference under it."""
    if one.recovery is not None and one.reference_ids is not None:
        missing = len(one.reference_ids) - one.tokens
        end = f"<small>{missing} more tokens of the reference were not recovered</small>" if missing > 0 else ""
        return _marked(one.recovery, one.wrong) + end
    rest = (
        ""
        if one.exact
        else f'<div style="{_PLAIN_BOX}"><small>reference:</small> <bdi>{boxed(one.reference)}</bdi></div>'
    )
    return f'<div style="{_PLAIN_BOX}"><bdi>{boxed(one.text)}</bdi></div>{rest}'


def _marked(found: Recovery, wrong: dict[int, int | None]) -> str:
    ids = found.token_ids[:TOKENS_MOST].tolist()
    spell = found.spelling
    parts = [Piece(i, i + 1, f"[{token}]") for i, token in enumerate(ids)] if spell is None else pieces(ids, spell)
    cells = "".join(_token(found, part, wrong) for part in parts)
    more = len(found.token_ids) - len(ids)
    rest = f" <small>{more} more tokens are not shown</small>" if more else ""
    whole = "" if spell is not None or found.text is None else f"<div><bdi>{boxed(found.text)}</bdi></div>"
    return f'<div dir="ltr" style="{_PLAIN_BOX}">{whole}{cells}{rest}</div>'


def _token(found: Recovery, part: Piece, wrong: dict[int, int | None]) -> str:
    """One piece, with its line, sign, and a tooltip of its figures; a wrong one with what is right behind it."""
    kind = _kind(found, part, wrong)
    sign, line, colour = KINDS[kind]
    first = part.start
    others = [i for at in range(part.start, part.stop) for i in found.alternatives.get(at, ())]
    about = f"position {first}, id {found.token_ids[first]}: {kind}; residual {found.residual[first]:.2g}, "
    about += f"margin {found.margin[first]:.2g}" + (f"; fit as well: {_spelt(found, others[:5])}" if others else "")
    if kind == WRONG:
        right = [wrong[at] for at in range(part.start, part.stop) if at in wrong]
        sign += f" (was {_spelt(found, [i for i in right if i is not None]) or 'nothing'})"
    said = f'<sup style="font-size:0.7em">{boxed(sign)}</sup>' if sign else ""
    style = f"{line} {colour};margin-right:1px"
    return f'<span title="{attribute(about)}"><bdi style="{style}">{boxed(part.text)}</bdi>{said}</span>'


def _spelt(found: Recovery, ids: Sequence[int]) -> str:
    return ", ".join(f"[{i}]" if found.spelling is None else f"“{found.spelling([i])}”" for i in ids)


def _kind(found: Recovery, part: Piece, wrong: dict[int, int | None]) -> str:
    """Of several tokens that make one character, the worst."""
    if any(at in wrong for at in range(part.start, part.stop)):
        return WRONG
    return max((Status(int(s)) for s in found.status[part.start : part.stop]), key=_WORST_LAST.index).label


def _kinds(found: Recovery, wrong: dict[int, int | None]) -> set[str]:
    return {Status(int(s)).label for s in set(found.status.tolist())} | ({WRONG} if wrong else set())


def _legend(kinds: Iterable[str]) -> str:
    marks = [
        f'<span style="{line} {colour}">{name}</span>{f" {sign}" if sign else ""}'
        for name, (sign, line, colour) in KINDS.items()
        if name in kinds
    ]
    return f"Marks: {', '.join(marks)}." if marks else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in header)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{c}</td>' for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
