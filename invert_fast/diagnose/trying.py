"""Which hypothesis makes states fit: cheapest first, each believed only when the states certify under it.

A lens reads a text off the rows, right or nearly so though the states are not quite what the lens knows. That text, run
through the model's own forward pass, gives the states of every layer, and the rows are compared with all of them, read
in every way, at the price of one pass; with known tokens before it, or at other positions, at the price of one more
each. What comes near is inverted under. Only then other layers are asked to read the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..model.decoder import Decoder
from ..model.reading import UNIT, Reading
from ..model.samples import opening_of, opening_of_chat
from ..types import InputError, Recovery, States, Status, coarsest
from .edits import CHEAP, DEAR, GAPS, edit_of
from .evidence import Fit, best_offsets, fits, shifts_show
from .hypotheses import GIVEN, Hypothesis
from .notes import notes_on, repeated
from .report import Diagnosis, Tried
from .trial import MOST, Draft, Inverts, Trials, certified_share

_ROWS, _FEW = 32, 8  # looked at; compared at every position there is
_NEARER = 0.6  # of the residual as given: what does not come nearer than that is not inverted under
_NEAR = 0.02  # nor, whatever that is, what is further away than this by itself
_CLOSE = 4.0  # times the nearest: as near
_AS_GOOD = 1.2  # times the nearest, where nothing fits: as good
_FLOOR = 2e-5  # residuals below are noise, and all alike
_CONTENDERS = 3  # inverted under, of one comparison
_OFFSETS = 2  # positions that are compared in every way, of all that there are
_OTHER_LAYERS = 3  # asked to read the text, most alike first
_ODD_LENGTH = 1.5  # rows so much longer or shorter than the layer's states are brought to their length before drafting
_RIGHT = 0.35  # residual of the middle row below which the text is right: no other lens reads a better one
_SLIGHT = 0.1  # residuals of a fit that another precision may explain
_ALL = 0.95  # certified: no coarser precision is tried
_PRECISIONS = (
    ("float16", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float16"),
    ("float32", "int8"),
    ("bfloat16", "bfloat16"),
)


def diagnose(inverter: Inverts, batch: Sequence[States], labelled: bool) -> Diagnosis:
    """Why these states do not certify: the longest of them is looked at, its first rows.

    labelled: they say themselves of which layer they are, which is only noted. Raises InputError where they are of
    another width, hold NaN or Inf, or have no row.
    """
    longest = max(batch, key=len, default=None)
    if longest is None or not len(longest):
        raise InputError("there is no row to look at, expected states of at least one token")
    rows = longest.hidden.detach()[: min(_ROWS, inverter.decoder.max_length)].to(inverter.decoder.device).float()
    if rows.shape[1] != inverter.decoder.width:
        raise InputError(
            f"states are {rows.shape[1]} wide, this model's are {inverter.decoder.width}: they are of another model"
        )
    gone = (~rows.isfinite().all(-1) | (rows == 0).all(-1)).tolist()
    if all(gone):
        raise InputError(
            "states have NaN or Inf values, or zeros alone, in every row, expected numbers: capture them again"
        )
    there = (
        longest if not any(gone) else replace(longest, hidden=longest.hidden[: len(rows)][[not out for out in gone]])
    )
    trials = Trials(inverter, rows, coarsest([there]))
    if any(gone):
        return _edited(Diagnosis(trials.layer, len(rows), labelled=labelled), edit_of(trials, rows, GAPS, gone))
    search = _Search(trials, longest, labelled)
    found = search.diagnosis()
    if not found.explained and search.edited is None and len(rows) > 1 and not repeated(rows):
        search.edited = edit_of(trials, rows, DEAR)
    return _edited(found, search.edited)


def _edited(found: Diagnosis, told: tuple[str, list[Recovery], float] | None) -> Diagnosis:
    """What was found, and the edit that was found out."""
    if told is None or found.explained:
        return found
    edit, mended, share = told
    said = tuple(one.mended.sentence for one in mended if one.mended is not None)
    return replace(found, edit=edit, certified=share, recovery=mended[0], notes=said)


class _Search:
    """What was compared so far, and what certified."""

    def __init__(self, trials: Trials, states: States, labelled: bool):
        self.trials, self.states, self.rows, self.labelled = trials, states, trials.rows, labelled
        self.decoder, self.layer = trials.given.decoder, trials.layer
        self.tried: dict[int, Tried] = {}
        self.nearest: tuple[Fit, Draft] | None = None
        self.given = float("inf")  # residual as given
        self.edited: tuple[str, list[Recovery], float] | None = None  # what `edit_of` says

    def diagnosis(self) -> Diagnosis:
        found = None if repeated(self.rows) else next(self._verified(), None)
        about: dict[str, Any] = {"layer": self.layer, "rows": len(self.rows), "tried": self.tried}
        about["labelled"] = self.labelled
        about["notes"] = notes_on(self.trials, self.states, self.nearest and self.nearest[0], found is None)
        if found is None:
            return Diagnosis(**about)
        return Diagnosis(**about, hypothesis=found[0], certified=certified_share(found[1]), recovery=found[1])

    def _verified(self) -> Iterator[tuple[Hypothesis, Recovery]]:
        """The hypotheses under which most positions certify, cheapest first."""
        alike = self.trials.likeness()
        openings = _openings(self.decoder)
        as_given = Hypothesis(self.layer, self.decoder.reading)
        drafts = self._drafts(self.layer, alike[self.layer][1])
        recovery = self.trials.verify(as_given, drafts[0])
        if certified_share(recovery) >= MOST:
            yield as_given, recovery
            return
        others = sorted((name for name in alike if name != self.layer), key=lambda name: -alike[name][0])
        yield from self._with_texts(drafts, self.layer, openings)
        near = self.nearest and self.nearest[0]
        right = near is not None and near.hypothesis.reading == Reading() and float(near.residuals.median()) < _RIGHT
        if len(self.rows) > 1:  # before lenses of other layers are fitted, and a slight edit is taken for noise
            begun = GAPS if recovery.status[0] == Status.CERTIFIED else ()
            self.edited = edit_of(self.trials, self.rows, CHEAP if right else (*CHEAP, *begun))
            if self.edited is not None:
                return
        if right:
            yield from self._in_another_precision()
            return
        for layer in others[: _OTHER_LAYERS if len(self.rows) > 1 else 0]:  # one row says too little of a layer
            yield from self._with_texts(self._drafts(layer, alike[layer][1]), layer, openings)
        yield from self._in_another_precision()

    def _drafts(self, layer: str, longer: float) -> list[Draft]:
        """Texts that the lens of a layer reads off the rows: where their length is odd, brought to that of the layer's
        states first, and then as they are."""
        odd = not 1 / _ODD_LENGTH < longer < _ODD_LENGTH
        return [self.trials.drafts(layer, scale=scale) for scale in ((longer, 1.0) if odd else (1.0,))]

    def _with_texts(
        self, drafts: Sequence[Draft], layer: str, openings: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[Hypothesis, Recovery]]:
        """What can be told from these drafts: where they stand, behind known tokens, and at any other position."""
        for draft in drafts:
            yield from self._contenders(draft, fits(self.decoder, self.rows, draft.ids, Reading()))
        if layer != self.layer or len(drafts) > 1:  # as the lens of this layer took them, whatever its text is worth
            scale = UNIT if len(drafts) > 1 else 1.0
            yield from self._tested(Hypothesis(layer, Reading(scale=scale)), drafts[0])
        for prefix in openings:
            own = self.trials.drafts(layer, prefix)
            for draft in (*drafts, own):
                yield from self._contenders(draft, fits(self.decoder, self.rows, draft.ids, Reading(prefix=prefix)))
            if len(drafts) == 1:
                yield from self._tested(Hypothesis(layer, Reading(prefix=prefix)), own)
        offsets = range(1, self.decoder.max_length - len(self.rows) + 1)
        for draft in drafts if offsets and shifts_show(self.decoder, drafts[0].ids[:_FEW]) else []:
            few = self.rows[:_FEW], draft.ids[:_FEW]
            for offset in best_offsets(self.decoder, *few, offsets, _OFFSETS):
                yield from self._contenders(draft, fits(self.decoder, self.rows, draft.ids, Reading(offset)))

    def _contenders(self, draft: Draft, compared: Iterable[Fit]) -> Iterator[tuple[Hypothesis, Recovery]]:
        """Invert under what came nearest, and among what is as near under what supposes least."""
        nearest: dict[int, Fit] = {}
        kept: list[Fit] = []
        for fit in compared:
            family = fit.hypothesis.family(self.layer)
            if family == GIVEN:
                self.given = min(self.given, fit.score)
            if family not in nearest or fit.score < nearest[family].score:
                nearest[family] = fit
            kept = [*kept, fit]
        for family, fit in nearest.items():
            self._note(family, Tried(fit.hypothesis, fit.score))
        if not kept:
            return
        best = min(fit.score for fit in kept)
        if self.nearest is None or best < self.nearest[0].score:
            near = [fit for fit in kept if fit.score <= _AS_GOOD * best]
            self.nearest = min(near, key=lambda fit: fit.hypothesis.cost(self.layer)), draft
        if best > max(_NEAR, _NEARER * self.given):
            return
        close = [fit for fit in kept if fit.score <= max(_FLOOR, _CLOSE * best)]
        close.sort(key=lambda fit: (fit.hypothesis.cost(self.layer), fit.score))
        for fit in [f for f in close if f.hypothesis.family(self.layer) != GIVEN][:_CONTENDERS]:
            yield from self._tested(fit.hypothesis, draft, fit.score)

    def _tested(
        self, hypothesis: Hypothesis, draft: Draft, residual: float | None = None
    ) -> Iterator[tuple[Hypothesis, Recovery]]:
        """Invert under a hypothesis, and give it back if most positions certify."""
        recovery = self.trials.verify(hypothesis, draft)
        share = certified_share(recovery)
        residual = float(recovery.residual.min()) if residual is None else residual
        self._note(hypothesis.family(self.layer), Tried(hypothesis, residual, share))
        if share >= MOST:
            yield self._by_a_factor(hypothesis, recovery, draft) if hypothesis.reading.unit else (hypothesis, recovery)

    def _by_a_factor(self, hypothesis: Hypothesis, found: Recovery, draft: Draft) -> tuple[Hypothesis, Recovery]:
        """Of rows that fit when each is brought to one length: whether one factor does for all of them, too."""
        text, reading = found.token_ids.tolist(), hypothesis.reading
        for fit in fits(self.decoder, self.rows, text, replace(reading, centered=False, scale=1.0)):
            same = fit.hypothesis.layer == hypothesis.layer and fit.hypothesis.reading.centered == reading.centered
            if same and not fit.hypothesis.reading.unit and fit.score <= _NEAR:
                recovery = self.trials.verify(fit.hypothesis, Draft(text, draft.lists))
                if certified_share(recovery) >= certified_share(found):
                    family = fit.hypothesis.family(self.layer)
                    self._note(family, Tried(fit.hypothesis, fit.score, certified_share(recovery)))
                    return fit.hypothesis, recovery
        return hypothesis, found

    def _note(self, family: int, tried: Tried) -> None:
        known = self.tried.get(family)
        if known is None or (tried.certified or 0, -tried.residual) >= (known.certified or 0, -known.residual):
            self.tried[family] = tried

    def _in_another_precision(self) -> Iterator[tuple[Hypothesis, Recovery]]:
        """What came nearest, in precisions coarser than the states say."""
        if self.nearest is None or self.nearest[0].score > _SLIGHT:
            return
        fit, draft = self.nearest
        best: tuple[Hypothesis, Recovery] | None = None
        for precision in _coarser(self.trials.precision):
            try:
                inverter = self.trials.on(fit.hypothesis.layer, fit.hypothesis.reading)
                if fit.score > inverter.calibrate(*precision).plain_noise[1]:  # its noise is less
                    continue
                found = next(self._tested(replace(fit.hypothesis, precision=precision), draft, fit.score), None)
            except InputError:  # the model overflows in it
                continue
            if found and (best is None or certified_share(found[1]) > certified_share(best[1])):
                best = found
            if best and certified_share(best[1]) >= _ALL:
                break
        if best:
            yield best


def _coarser(precision: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return _PRECISIONS[_PRECISIONS.index(precision) + 1 :] if precision in _PRECISIONS else _PRECISIONS


def _openings(decoder: Decoder) -> list[tuple[int, ...]]:
    """What may have stood before the first row: a BOS, by the tokenizer or the model's config, one or two of them; the
    opening of a chat."""
    bos = getattr(decoder.tokenizer, "bos_token_id", None)
    bos = decoder.model.config.get_text_config().bos_token_id if bos is None else bos
    marks = [tuple(opening_of(decoder)), (bos,) if isinstance(bos, int) and 0 <= bos < decoder.vocab_size else ()]
    found = [*marks, *(2 * mark for mark in marks), tuple(opening_of_chat(decoder))]
    return list(dict.fromkeys(prefix for prefix in found if prefix))
