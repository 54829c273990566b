"""What is known of each position of a text: figures, and the sentence that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, overload

from ..reports.frames import frame
from ..types import Recovery, Status


@dataclass(frozen=True)
class Rival:
    """Another token that was tried at a position. residual: of its state, as in `Position`."""

    token_id: int
    token: str | None
    residual: float


@dataclass(frozen=True)
class Position:
    """One token of a text. Tokens' texts are what they add to the text before them, None without a tokenizer.

    position, token_id, token: where and what it is; draft_id, draft: what the lens makes of the states there, before
    anything is verified; lens_rank, prior_rank: how many tokens the lens holds likelier from the state, and the model
    from the text before it (0: none; None at the first position, which has nothing before it); prior_probability: that
    the model gives it;
    residual: distance of the state that our pass gives the token, after the tokens before it, from the captured one,
    over the length of that: in the metric of the noise where states are coarse (docs/certificates.md); tolerance: up to
    which a token is accepted; required: how far the state of any token that was not tried must be from this one's;
    bound: how near it can come, by calibration; rivals: the tokens tried beside it, nearest first; margin: how much
    further away the nearest of them is, below 0 where it is nearer;
    found_id, found: what inverting the states gives there; status, error_bound: the certificate of that, as in
    `Recovery`; reason: why, without figures.
    """

    position: int
    token_id: int
    token: str | None
    draft_id: int
    draft: str | None
    lens_rank: int
    prior_rank: int | None
    prior_probability: float | None
    residual: float
    tolerance: float
    required: float
    bound: float
    rivals: tuple[Rival, ...]
    found_id: int
    found: str | None
    status: Status
    error_bound: float
    reason: str

    @property
    def margin(self) -> float:
        """Residual of the nearest rival less that of the token; ∞ where there is no other token."""
        return self.rivals[0].residual - self.residual if self.rivals else math.inf

    @property
    def why(self) -> str:
        """The reason, with its figures."""
        nearest = f"; the nearest tried is at {self.rivals[0].residual:.1e}" if self.rivals else ""
        figures = f"residual {self.residual:.1e} of at most {self.tolerance:.1e}"
        apart = f"others at {self.bound:.1e} or more, {self.required:.1e} asked{nearest}"
        return f"{self.reason} ({figures}; {apart})"

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and strings; None for what is not finite."""
        row: dict[str, Any] = {**asdict(self), "margin": self.margin, "status": self.status.label, "why": self.why}
        row["rivals"] = [{**asdict(rival), "residual": _finite(rival.residual)} for rival in self.rivals]
        return {name: _finite(value) if isinstance(value, float) else value for name, value in row.items()}


@dataclass(frozen=True)
class Explanation:
    """Of one text, position by position; a notebook shows it as a table under the marked text.

    layer: where the states were taken; states_dtype, compute_dtype: their precision, stored and computed, as in
    `States`; lens: which drafted; recovery: what inverting them gives.
    """

    positions: tuple[Position, ...]
    recovery: Recovery
    layer: str
    states_dtype: str
    compute_dtype: str
    lens: str

    @property
    def certified(self) -> bool:
        """Every token of the text is."""
        return self.recovery.certified and all(one.found_id == one.token_id for one in self)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Position]:
        return iter(self.positions)

    @overload
    def __getitem__(self, position: int) -> Position: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Position, ...]: ...
    def __getitem__(self, position: int | slice) -> Position | tuple[Position, ...]:
        return self.positions[position]

    def to_pandas(self) -> Any:
        """A row a position, as `Position.as_json`. InputError without pandas."""
        rows = [one.as_json() for one in self]
        return frame({name: [row[name] for row in rows] for name in (rows[0] if rows else ())})

    def _repr_html_(self) -> str:
        from .page import of_explanation

        return of_explanation(self)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
