"""How right recovered texts are: against their references, by text and by token."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import InputError, Recovery, Status
from .calibration import calibration_error


@dataclass(frozen=True)
class ScoredText:
    """One recovered text against its reference.

    text, reference: what came out, what went in; token_ids, reference_ids: the same in tokens (reference_ids None where
    they are not known); exact: equal, by tokens where these are known; token_accuracy: share of positions that are
    right, of those of the longer of the two; similarity: difflib's ratio of the texts; certified: share of positions
    with a certificate, None where nobody said; recovery: the whole of it, where it was given; posterior: the stated
    probability of each token, None where nobody said.
    """

    text: str
    reference: str
    token_ids: list[int]
    reference_ids: list[int] | None
    exact: bool
    token_accuracy: float | None
    similarity: float
    certified: float | None = None
    recovery: Recovery | None = field(default=None, repr=False, compare=False)
    posterior: list[float] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Positions that were recovered."""
        return len(self.token_ids)

    @property
    def wrong(self) -> dict[int, int | None]:
        """Positions that came out wrong → the right id, None behind the reference's end. Empty without its ids."""
        if self.reference_ids is None:
            return {}
        truth = [*self.reference_ids, *[None] * max(0, len(self.token_ids) - len(self.reference_ids))]
        return {i: right for i, (found, right) in enumerate(zip(self.token_ids, truth, strict=False)) if found != right}


@dataclass(frozen=True)
class Score:
    """exact_match: share of prompts recovered at every token (by text where there are no reference ids);
    token_accuracy: share of positions, None without reference ids; similarity: mean difflib ratio of the texts;
    certified: share of positions with a certificate, None where nobody said; texts: each by itself; posterior: mean of
    the stated probabilities that tokens are right, calibration_error: how far those are from what came true (see
    `calibration`), None where nobody stated any."""

    prompts: int
    exact_match: float
    token_accuracy: float | None
    similarity: float
    certified: float | None = None
    texts: tuple[ScoredText, ...] = field(default=(), repr=False)
    posterior: float | None = None
    calibration_error: float | None = None

    def to_pandas(self) -> Any:
        """A row a text. InputError without pandas."""
        from .frames import of_score

        return of_score(self)

    def _repr_html_(self) -> str:
        from .html import of_score

        return of_score(self)


def check_paired(recovered: Sequence[Recovery], texts: Sequence[Any]) -> None:
    """InputError where there is not one text for each recovery."""
    if len(recovered) != len(texts):
        raise InputError(
            f"{len(recovered)} recoveries came with {len(texts)} texts, expected one each: give the texts that were "
            "captured, in their order"
        )


def score(
    rows: Iterable[Recovery | Mapping[str, Any]], references: Sequence[tuple[Sequence[int] | None, str]]
) -> Score:
    """rows: a `Recovery`, or a line of recovered.jsonl, of each prompt; references: its (ids or None, text), in
    order."""
    texts = tuple(_scored(row, ids, text) for row, (ids, text) in zip(rows, references, strict=True))
    if not texts:
        return Score(0, 1.0, None, 1.0)
    known = all(one.reference_ids is not None for one in texts)
    accuracy = _pooled(texts, [max(len(one.reference_ids or ()), one.tokens) for one in texts], "token_accuracy")
    said = all(one.certified is not None for one in texts)
    stated = [p for one in texts for p in one.posterior or ()]
    right = [i not in one.wrong for one in texts if one.posterior is not None for i in range(one.tokens)]
    believed = known and len(stated) == sum(one.tokens for one in texts) > 0
    return Score(
        len(texts),
        sum(one.exact for one in texts) / len(texts),
        accuracy if known else None,
        sum(one.similarity for one in texts) / len(texts),
        _pooled(texts, [one.tokens for one in texts], "certified") if said else None,
        texts,
        sum(stated) / len(stated) if believed else None,
        calibration_error(stated, right) if believed else None,
    )


def _scored(row: Recovery | Mapping[str, Any], ids: Sequence[int] | None, reference: str) -> ScoredText:
    recovery = row if isinstance(row, Recovery) else None
    if isinstance(row, Recovery):
        found, text, status = row.token_ids.tolist(), row.text or "", [int(s) for s in row.status]
        certified = [s == Status.CERTIFIED for s in status]
        posterior = None if row.posterior is None else row.posterior.tolist()
    else:
        found, text = list(row["token_ids"]), row["text"] or ""
        certified = [s == Status.CERTIFIED.label for s in row.get("status", ())]
        posterior = _stated(row.get("posterior"), len(found))
    similarity = 1.0 if text == reference else difflib.SequenceMatcher(None, text, reference, autojunk=False).ratio()
    share = sum(certified) / len(found) if len(certified) == len(found) and found else None if found else 1.0
    if ids is None:
        exact = text == reference
        return ScoredText(text, reference, found, None, exact, None, similarity, share, recovery, posterior)
    truth = list(ids)
    longer = max(len(truth), len(found))
    right = sum(a == b for a, b in zip(found, truth, strict=False))
    accuracy = right / longer if longer else 1.0
    exact = found == truth
    return ScoredText(text, reference, found, truth, exact, accuracy, similarity, share, recovery, posterior)


def _stated(posterior: Any, tokens: int) -> list[float] | None:
    """The probabilities of a line of recovered.jsonl, if they are one a token; null is none."""
    if not isinstance(posterior, list) or len(posterior) != tokens:
        return None
    good = [p if isinstance(p, (int, float)) and 0 <= p <= 1.001 else 0.0 for p in posterior]
    return [min(1.0, float(p)) for p in good]


def _pooled(texts: Sequence[ScoredText], weights: Sequence[int], name: str) -> float:
    """The share of positions of all texts together."""
    total = sum(weights)
    parts = ((getattr(one, name) or 0.0) * weight for one, weight in zip(texts, weights, strict=True))
    return sum(parts) / total if total else 1.0
