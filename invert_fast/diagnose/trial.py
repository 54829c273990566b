"""Trying a hypothesis: the states, read under it, are inverted, and it stands or falls with the certificates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..engine.protocol import Strategy
from ..engine.tolerances import Tolerances
from ..lens.choose import choose_lens
from ..mend.known import Known
from ..model.decoder import Decoder
from ..model.reading import AS_CAPTURED, Reading
from ..model.samples import sample_texts
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from ..types import Recovery, States
from .evidence import states_everywhere
from .hypotheses import Hypothesis

MOST = 0.5  # of the positions have to be certified
_TRIED = 1024  # tokens tried, at most, where the draft of a position is wrong


class Inverts(Protocol):
    """As much of an `Inverter` as is used here, which stands above."""

    decoder: Decoder
    vocabulary: Vocabulary

    def __init__(self, model, tokenizer=None, layer: int | str = -1, *, reading=AS_CAPTURED): ...

    def calibrate(self, states_dtype: str = "float32", compute_dtype: str = "float32") -> Tolerances: ...

    def checked(self, index: int, item: States | Tensor) -> Tensor: ...

    def invert(self, states: Tensor | States, strategy: str | Strategy = "auto", **options) -> list[Recovery]: ...


@dataclass(frozen=True)
class Draft:
    """A text as a lens reads it off the rows: ids `[T]`, and lists `[T, C]` of what else may stand at each position."""

    ids: list[int]
    lists: Tensor


class Trials:
    """Rows `[T, D]` of one text, and one inverter after the other that they are tried on. precision: stored, computed.

    given: the inverter that was asked; the other ones are made of its model, and only the last of them is kept.
    """

    def __init__(self, given: Inverts, rows: Tensor, precision: tuple[str, str]):
        self.given, self.rows, self.precision = given, rows, precision
        self.layer = given.decoder.layer.name
        self._last: tuple[tuple[str, Reading], Inverts] | None = None

    def on(self, layer: str, reading: Reading = AS_CAPTURED) -> Inverts:
        """An inverter of this layer that reads states so."""
        decoder = self.given.decoder
        if (layer, reading) == (self.layer, decoder.reading):
            return self.given
        if self._last is None or self._last[0] != (layer, reading):
            self._last = None  # before the next is made: each packs weights of its own
            made = type(self.given)(decoder.model, decoder.tokenizer, layer, reading=reading)
            self._last = (layer, reading), made
        return self._last[1]

    def drafts(self, layer: str, prefix: Sequence[int] = (), scale: float = 1.0) -> Draft:
        """What the lens of a layer reads off the rows, divided by `scale`, behind the states of `prefix`."""
        inverter = self.on(layer)
        decoder = inverter.decoder
        rows = (self.rows / scale).to(decoder.device)
        if prefix:
            rows = torch.cat([decoder.capture(torch.tensor([list(prefix)], device=rows.device))[0].float(), rows])
        lens = choose_lens(decoder, inverter.vocabulary, "auto", self.precision[0])
        with torch.no_grad():
            ids, proxies = lens.draft(rows[None])[0], lens.proxies(rows[None])
            if inverter.vocabulary.size >= MANY_TOKENS:
                lists = lens.lists(proxies)[0][0]
            else:
                first = torch.arange(len(rows), device=rows.device) == 0
                lists = lens.scores(proxies[0], first).topk(min(_TRIED, inverter.vocabulary.candidates)).indices
        return Draft(ids[len(prefix) :].tolist(), lists[len(prefix) :, :_TRIED])

    def verify(self, hypothesis: Hypothesis, draft: Draft) -> Recovery:
        """The rows inverted under a hypothesis, where a draft says what to look at first."""
        reading, count = hypothesis.reading, len(hypothesis.reading.prefix)
        inverter = self.on(hypothesis.layer, reading)
        before = torch.full((count, draft.lists.shape[1]), -1, dtype=draft.lists.dtype, device=draft.lists.device)
        known = Known([*reading.prefix, *draft.ids], torch.cat([before, draft.lists]).long())
        stored, computed = hypothesis.precision or self.precision
        states = States(self.rows, hypothesis.layer)
        found = inverter.invert(states, known, states_dtype=stored, compute_dtype=computed)  # type: ignore[arg-type]
        return found[0]

    def likeness(self) -> dict[str, tuple[float, float]]:
        """Of each layer: how much its states are like the rows, from −1 to 1, whatever was done to the length and the
        mean of rows; and how long the rows are beside them."""
        decoder, length = self.given.decoder, min(16, self.given.decoder.max_length)
        samples = sample_texts(decoder, self.given.vocabulary.allowed, 12, length, 0)
        view, skip = Reading(centered=True, scale="unit"), length > 1
        theirs = view.seen(self.rows.to(decoder.device))[len(self.rows) > 1 :].mean(0)
        found = {}
        for name, states in states_everywhere(decoder, samples, [0] * len(samples)).items():
            ours = view.seen(states[:, skip:]).flatten(0, 1).mean(0)
            alike = float(torch.nn.functional.cosine_similarity(theirs, ours, dim=0))
            longer = float(self.rows.norm(dim=-1).median() / states[:, skip:].norm(dim=-1).median().clamp_min(1e-30))
            found[name] = (alike if math.isfinite(alike) else -1.0, longer)
        return found


def certified_share(found: Recovery) -> float:
    return float((found.status == 0).mean()) if len(found.status) else 1.0
