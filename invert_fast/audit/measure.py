"""One cell: states of texts, rounded and defended, inverted and compared with what stood there, a row a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..defences.base import Defence
from ..defences.spec import parse_defence
from ..defences.utility import losses_of_texts, next_token_losses
from ..inverter import Inverter
from ..model.decoder import Decoder
from ..reports.pieces import pieces
from ..reports.score import score
from ..storage.precisions import rounded
from ..types import Recovery, States, Status
from .read_off import read_off
from .settings import READ_OFF, UNDEFENDED, Cell, Settings

LETTERS = dict(zip(Status, "cbanf", strict=True))  # of `status`, a letter a position
MISSING = "-"  # a position whose row was not given away
EXAMPLES = 3  # texts of which the pieces of recovered tokens are kept, to be shown


@dataclass(frozen=True)
class Original:
    """A text as it went in. index: which it is of all; pieces: the text of each token, joined they are `text`."""

    index: int
    ids: list[int]
    text: str
    pieces: list[str]


def original(decoder: Decoder, index: int, ids: list[int]) -> Original:
    return Original(index, ids, decoder.decode(ids) or "", spelt(decoder, ids))


def spelt(decoder: Decoder, ids: Sequence[int]) -> list[str]:
    """The text of each token behind those before it; several that make one character only together have it at the first
    of them, and nothing at the others."""
    if decoder.tokenizer is None:
        return [f"[{token}]" for token in ids]
    from ..types import Spelling

    found = [""] * len(ids)
    for piece in pieces([*ids], Spelling(decoder.tokenizer)):
        found[piece.start] = piece.text
    return found


class Bench:
    """The texts at one layer: captured once, for all precisions and defences. base: the model's own loss of each token
    of the texts that utility is measured on."""

    def __init__(self, inverter: Inverter, texts: Sequence[Original], settings: Settings, base: Sequence[Tensor]):
        self.inverter, self.texts, self.settings, self.base = inverter, texts, settings, base
        self.plain = [*inverter.capture_ids([text.ids for text in texts])]
        self._given: tuple[str, list[Tensor]] = "", []

    def rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """What came of each text. What is random follows from the seed and the text's number among all."""
        defence = None if cell.defence == UNDEFENDED else parse_defence(cell.defence)
        given = self._states(cell, defence)
        if cell.strategy == READ_OFF:
            found = read_off(self.inverter, given)
        else:
            found = self.inverter.invert(given, cell.strategy)
        losses = self._losses(given, defence)
        for at, (text, recovery) in enumerate(zip(self.texts, found, strict=True)):
            yield {**vars(cell), **self._row(text, recovery, self._kept(text, defence)), **losses.get(at, {})}

    def _kept(self, text: Original, defence: Defence | None) -> list[int]:
        every = [*range(len(text.ids))]
        return every if defence is None else defence.kept(len(every), self.settings.seed + text.index)

    def _states(self, cell: Cell, defence: Defence | None) -> list[States]:
        if self._given[0] != cell.defence:
            seed = self.settings.seed
            given = (
                [defence.apply(rows, seed + text.index) for rows, text in zip(self.plain, self.texts, strict=True)]
                if defence
                else self.plain
            )
            self._given = cell.defence, given
        decoder = self.inverter.decoder
        computed = str(decoder.dtype).removeprefix("torch.")
        return [
            States(rounded(rows, cell.precision), cell.layer, cell.precision, computed, decoder.fingerprint())
            for rows in self._given[1]
        ]

    def _losses(self, given: Sequence[States], defence: Defence | None) -> dict[int, dict[str, float]]:
        """By text: sums of the loss from the states as they were given away, and of the model's own, of as many
        tokens."""
        decoder, measured = self.inverter.decoder, [*zip(self.texts, given, self.base, strict=False)]
        received = [(states if defence is None else defence.received(states)).hidden for _, states, _ in measured]
        kept = [self._kept(text, defence) for text, *_ in measured]
        if all(len(rows) == len(text.ids) for rows, (text, *_) in zip(received, measured, strict=True)):
            after = losses_of_texts(decoder, [text.ids for text, *_ in measured], received)
        else:
            after = [
                next_token_losses(decoder, text.ids, rows, places)
                for (text, *_), rows, places in zip(measured, received, kept, strict=True)
            ]
        rows = {}
        for at, (loss, places, (text, _, before)) in enumerate(zip(after, kept, measured, strict=True)):
            seen = [place for place in places if place + 1 < len(text.ids)]
            figures = {"loss": float(loss.sum()), "loss_undefended": float(before[seen].sum())}
            rows[at] = {
                **{k: round(v, 6) for k, v in figures.items()},
                "predicted": len(seen),
                "to_predict": len(text.ids) - 1,
            }
        return rows

    def _row(self, text: Original, recovery: Recovery, kept: Sequence[int]) -> dict[str, Any]:
        """Against the whole text: a token whose row was not given away did not come back."""
        ids, status = [-1] * len(text.ids), [MISSING] * len(text.ids)
        for place, token, what in zip(kept, recovery.token_ids.tolist(), recovery.status.tolist(), strict=True):
            ids[place], status[place] = token, LETTERS[Status(what)]
        wrong = [found != true for found, true in zip(ids, text.ids, strict=True)]
        row = {"token_ids": ids, "text": recovery.text or ""}
        (one,) = score([row], [(text.ids, text.text)]).texts
        loss = recovery.discrete_loss[np.isfinite(recovery.discrete_loss)]
        marks = "".join(status)
        found: dict[str, Any] = {
            "text": text.index,
            "tokens": len(text.ids),
            "exact": one.exact,
            "right": wrong.count(False),
            "similarity": round(one.similarity, 6),
            "certified": marks.count("c"),
            "ambiguous": marks.count("a"),
            "certified_wrong": sum(w and mark == "c" for w, mark in zip(wrong, marks, strict=True)),
            "discrete_loss": float(f"{loss.mean():.4g}") if len(loss) else None,
            "forward_tokens": recovery.cost.forward_tokens,
            "backward_tokens": recovery.cost.backward_tokens,
            "seconds": round(recovery.cost.seconds, 6),
            "status": marks,
        }
        if not one.exact:
            found |= {"token_ids": ids, "recovered": recovery.text}
            if text.index < EXAMPLES:
                shown = iter(spelt(self.inverter.decoder, recovery.token_ids.tolist()))
                found["pieces"] = ["" if mark == MISSING else next(shown) for mark in marks]
        return found
