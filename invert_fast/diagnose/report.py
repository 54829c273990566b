"""What was found out, as figures and as sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..reports.frames import frame
from ..reports.html import of_diagnosis
from ..types import Recovery
from .hypotheses import EDITS, FAMILIES, GIVEN, Hypothesis

HEADER = ("supposed", "option", "residual", "certified")


@dataclass(frozen=True)
class Tried:
    """One hypothesis of each kind, the best of its kind. residual: relative distance of the rows from the model's
    states of the text as drafted, at the second nearest row; certified: share of positions, None where it was too far
    off to be inverted under."""

    hypothesis: Hypothesis
    residual: float
    certified: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Why states do not certify.

    layer: what they were said to be of; hypothesis: under which they do certify, None where none of those tried does;
    certified: share of the rows looked at that is certified under it; rows: how many were; tried: by kind, in the order
    of `FAMILIES`, whatever was compared; notes: what else showed, in sentences; recovery: of those rows, under the
    hypothesis, else None; edit: what was done to the rows, where `mend` undoes it (recovery is the first text of what
    that gives then, and notes say what it did), else empty; labelled: the states said themselves what they are of,
    which an option must overrule.
    """

    layer: str
    rows: int
    hypothesis: Hypothesis | None = None
    certified: float = 0.0
    tried: dict[int, Tried] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recovery: Recovery | None = None
    labelled: bool = False
    edit: str = ""

    @property
    def explained(self) -> bool:
        """States certify as they are, or there is an option or an edit with which they do."""
        return self.hypothesis is not None or bool(self.edit)

    @property
    def command(self) -> str:
        """What recovers the texts: `invert`, or `mend` of edited states."""
        return "mend" if self.edit else "invert"

    @property
    def options(self) -> str:
        """What to add to `invert-fast` and the command; empty where nothing is to be."""
        if self.edit:
            return f"--edit {self.edit}"
        return "" if self.hypothesis is None else self.hypothesis.options(self.layer, self.labelled)

    @property
    def verdict(self) -> str:
        """One sentence, and what to do next."""
        if self.edit:
            share, there = f"{100 * self.certified:.0f} % of the first {self.rows} rows", ""
            if self.edit == "gap":
                there = " that are there"
            return f"{EDITS[self.edit]}: mended so, {share}{there} certify"
        if self.hypothesis is None:
            return "none of the following explains it" if self.tried else "nothing to try"
        share = f"{100 * self.certified:.0f} % of the first {self.rows} rows"
        if self.hypothesis.family(self.layer) == GIVEN:
            return f"{self.hypothesis.sentence(self.layer)}: {share} certify as they are"
        return f"{self.hypothesis.sentence(self.layer)}: read so, {share} certify"

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows under `HEADER`, a kind of hypothesis each."""
        return [
            (
                FAMILIES[kind],
                one.hypothesis.options(self.layer, self.labelled) or "–",
                f"{one.residual:.1e}",
                "–" if one.certified is None else f"{100 * one.certified:.0f} %",
            )
            for kind, one in sorted(self.tried.items())
        ]

    def to_pandas(self) -> Any:
        """A row a kind of hypothesis, as `table`, figures as numbers. InputError without pandas."""
        tried = [one for _, one in sorted(self.tried.items())]
        return frame(
            {
                "supposed": [row[0] for row in self.table()],
                "option": [one.hypothesis.options(self.layer, self.labelled) for one in tried],
                "residual": [one.residual for one in tried],
                "certified": [one.certified for one in tried],
            }
        )

    def _repr_html_(self) -> str:
        command = self.command, self.options
        return of_diagnosis(self.verdict, command, self.notes, HEADER, self.table(), self.recovery)

    def __str__(self) -> str:
        option = f" ({self.command} with {self.options})" if self.options else ""
        return "\n".join([self.verdict + option, *self.notes])
