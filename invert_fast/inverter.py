"""`Inverter`: the Python API. One object a model and layer; capture states, invert them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .calls.settings import usual_settings
from .calls.turns import NOT_COPIED, taking_turns, turns_of
from .engine.calibrate import calibrate, with_noise
from .engine.engine import Engine
from .engine.memory import plan
from .engine.protocol import Strategy
from .engine.read import run_as_read
from .engine.tolerances import Tolerances
from .intake.checks import check_lengths, checked, noise_of, of_like_noise, of_noise
from .intake.prompts import encode, is_chat
from .intake.rows import captured, labelled
from .intake.texts import texts_of
from .lens.choose import forget
from .lens.settings import Fit, FitReport
from .logits.certify import solve_all
from .logits.recorded import Logits
from .logits.search import search_vectors
from .logits.vector import VectorRecovery, VectorSearch
from .model.decoder import Decoder
from .model.load import load
from .model.reading import AS_CAPTURED, Reading
from .model.vocabulary import Vocabulary
from .model.wrapped import bare
from .ops.outside import name_in_use
from .reports.score import Score, check_paired, score
from .storage.noise import Noise, noise_named
from .storage.precisions import rounded, stored_dtype
from .strategies.noise_level import estimate_noise
from .strategies.registry import strategy_named
from .types import QUANTISED, Recovery, States, coarsest, dtype_named

if TYPE_CHECKING:
    from .diagnose.report import Diagnosis


@taking_turns
class Inverter:
    """Turns hidden states of one layer of one decoder back into text, with a certificate for every token.

    model: a Hugging Face causal language model (left as it is); tokenizer: None works with token ids only;
    layer: a `hidden_states` index, `block:k`, `final_norm` or `embeddings`;
    reading: what else happened to the states (see `Reading`, and `diagnose`). Calls of several threads take turns,
    under settings of PyTorch that are always the same (docs/robustness.md).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        layer: int | str = -1,
        *,
        reading: Reading = AS_CAPTURED,
    ):
        self._tolerances: dict[tuple[str, str, str], Tolerances] = {}
        self._turns = turns_of(bare(model))
        with self._turns:
            self.decoder = Decoder(model, tokenizer, layer).read_as(reading)
            self.vocabulary = Vocabulary(self.decoder)

    def __reduce__(self):
        raise TypeError(NOT_COPIED)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        layer: int | str = -1,
        device: str | None = None,
        dtype: str | torch.dtype = "float32",
        *,
        reading: Reading = AS_CAPTURED,
    ) -> Inverter:
        """Load a local folder, a Hub id or `bundled` (safetensors only, no remote code).

        device: default cuda when there is one; dtype: precision of our own forward passes, fp32 certifies best.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with usual_settings():
            model, tokenizer = load(name_or_path, device, dtype)
        return cls(model, tokenizer, layer, reading=reading)

    def capture(
        self,
        texts: Iterable[Any],
        *,
        max_tokens: int | None = None,
        special: bool = True,
        store_dtype: str = "float32",
        batch_size: int = 32,
    ) -> list[States]:
        """Hidden states of texts, of chats (lists of messages) or of token ids, by the model's own unmodified pass.

        max_tokens: cut each text to that many; texts longer than the model's context are cut to it;
        special: texts get what the tokenizer adds by itself, as in the model's own use (a BOS has a row like any); a
        chat is written by the tokenizer's template, ids are taken as they are;
        store_dtype: round the states to this precision (float32, float16, bfloat16, fp8_e4m3, fp8_e5m2, int8). An empty
        text has `[0, D]` states.
        """
        ids = [
            self.encode(text, max_tokens, special)
            for text in ([texts] if isinstance(texts, str) or is_chat(texts) else self._turns.outside(texts))
        ]
        stored_dtype(store_dtype)  # before any work
        held = torch.float32 if store_dtype in QUANTISED else dtype_named(store_dtype)
        found = self.capture_ids(ids, held, batch_size)
        return [labelled(self.decoder, rounded(rows, store_dtype), store_dtype) for rows in found]

    def encode(self, text: Any, max_tokens: int | None = None, special: bool = False) -> list[int]:
        """The token ids that `capture` runs for a text (or chat, or ids); `special` as there."""
        ids = encode(self.decoder, text, special)
        self.decoder.check_ids(ids)
        return ids[: min(self.decoder.max_length, self.decoder.max_length if max_tokens is None else max_tokens)]

    def capture_ids(
        self, ids: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32, batch_size: int = 32
    ) -> Iterator[Tensor]:
        """States `[T_i, D]` of each row of ids, in order. Rows of equal length share a pass, so none is padded."""
        return captured(self.decoder, ids, dtype, batch_size)

    def invert(
        self, states: Any, strategy: str | Strategy = "auto", *, attention_mask: Any = None, **options: Any
    ) -> list[Recovery]:
        """The texts of these states, in order; options as in `invert_iter`.

        states: one `[T, D]` (tensor, numpy array, nested lists) or `States`; a padded batch `[B, T, D]` with its
        attention_mask `[B, T]`, left or right (all rows are taken without one); what a model or `generate` returns with
        output_hidden_states=True, or its tuple alone, of which this inverter's layer is taken; a list of any of these
        (docs/states.md). Never raises for a position it could not recover: look at `certified` and `status`.
        """
        batch = texts_of(states, self.decoder.layer, attention_mask)
        shown: dict[str, Any] = dict(zip(("states_dtype", "compute_dtype"), coarsest(batch), strict=True))
        options = shown | {name: value for name, value in options.items() if value is not None}
        noise, found = options.pop("noise", None), dict[int, Recovery]()
        noise = self.estimate_noise(batch) if noise == "auto" else noise_named(noise)
        for own, texts in of_like_noise(batch, noise):
            found.update(self.invert_iter(texts, strategy, lengths=[len(t) for _, t in texts], noise=own, **options))
        return [found[i] for i in range(len(batch))]

    def estimate_noise(self, states: Any, attention_mask: Any = None) -> Noise | None:
        """How loud the noise in these states is, given as to `invert`; None for what their precision explains."""
        batch = texts_of(states, self.decoder.layer, attention_mask)
        rows, own = [self.checked(i, text) for i, text in enumerate(batch)], self.calibrate(*coarsest(batch))
        return estimate_noise(self.decoder, self.vocabulary, own, [*map(self.decoder.reading.rows, rows)])

    def invert_iter(
        self,
        states: Iterable[tuple[int, States | Tensor]],
        strategy: str | Strategy = "auto",
        *,
        lengths: Sequence[int],
        batch_size: int | None = None,
        max_memory: float | None = None,
        states_dtype: str | None = None,
        compute_dtype: str | None = None,
        tolerances: Tolerances | None = None,
        noise: Noise | str | None = None,
    ) -> Iterator[tuple[int, Recovery]]:
        """`(index, states)` in, `(index, Recovery)` out as each text is finished; reads `states` as lanes come free.

        All states share the precision of the first, as they say and as its numbers show. lengths: tokens of each text,
        known beforehand, so that lanes can be sized; batch_size: lanes at once (default: what fits in memory);
        max_memory: GiB to stay within, the model included; states_dtype, compute_dtype: precisions of the capture,
        instead of what the states say; tolerances: instead of calibrating; noise: what was added to all of them,
        instead of what the first says (`invert` also takes "auto": it is estimated); `auto` is then `beam`. Raises
        InputError for states that cannot be of this model: width, layer, fingerprint, NaN or Inf, too many rows.
        """
        source = self._turns.outside(states)
        if (first := next(source, None)) is None or not len(lengths):
            return iter(())
        longest = max(1, *lengths) + len(self.decoder.reading.prefix)
        self.check_lengths([longest])
        rows = self.checked(*first)
        shown, computed = (first[1] if isinstance(first[1], States) else States(first[1])).precision()
        stored = states_dtype or shown
        tolerances = tolerances or self.calibrate(stored, compute_dtype or computed)
        if (noise := noise_named(noise) or noise_of(first[1])) is not None:
            tolerances = with_noise(self.decoder, self.vocabulary, tolerances, noise, rows)
            strategy = "beam" if strategy == "auto" else strategy
        work = plan(self.decoder, longest, max_memory, batch_size)
        lanes = min(work.slots, len(lengths)), longest, work.tokens_per_call
        engine = Engine(self.decoder, self.vocabulary, tolerances, strategy_named(strategy), *lanes, stored)
        others = ((index, self.checked(index, item)) for index, item in of_noise(source, noise))
        return run_as_read(self.decoder, itertools.chain([(first[0], rows)], others), engine.run)

    def invert_logits(
        self, logits: Logits | Tensor | Sequence[Logits | Tensor], strategy: str | Strategy = "auto", **options: Any
    ) -> list[Recovery]:
        """The texts whose next-token log-probs or logits these are, in order; options as in `invert_iter`.

        logits: one `[T, n]` tensor of full rows, one `Logits` (subsets, top-k, precision), or a list of them, recorded
        alike. They are solved for the final states, and a certificate bears in mind how exact those are. Raises
        InputError where entries are too few, not finite, not normalised though said to be, or not of this model.
        """
        found, own = solve_all(self.decoder, self.vocabulary, logits)
        options["tolerances"] = options.get("tolerances") or own
        return self.invert([s.hidden.float() for s in found], strategy, **options)

    def invert_vector(
        self,
        vectors: Logits | Tensor | Sequence[Logits | Tensor],
        length: int | None = None,
        *,
        max_length: int = 5,
        settings: VectorSearch | None = None,
    ) -> list[VectorRecovery]:
        """Short prompts from a single next-token vector each: that after the whole prompt.

        vectors: one `[V]` or `[1, V]` tensor, one `Logits` (its last row counts), or a list of them; length: tokens of
        the prompts, None where unknown (then 1 … max_length). Nothing is `verified` unless the model gives the vector's
        state again, and nothing else that was tried does (`logits.search`).
        """
        lengths = range(1, max_length + 1) if length is None else [length]
        return search_vectors(self.decoder, self.vocabulary, vectors, lengths, settings, self.calibrate)

    def diagnose(self, states: Any, attention_mask: Any = None) -> Diagnosis:
        """Why these states, given as to `invert`, do not certify, and the layer or `Reading` with which they do: see
        `diagnose.trying`."""
        from .diagnose.trying import diagnose

        labelled = any(isinstance(item, States) for item in (states, *(states if isinstance(states, list) else ())))
        return diagnose(self, texts_of(states, self.decoder.layer, attention_mask), labelled)

    def mend(
        self, states: Any, edit: str, *, missing: Sequence[int] = (), direction: Any = None, **options: Any
    ) -> list[Recovery]:
        """The texts of states, given as to `invert`, that were edited: each says in `mended` what was done
        (docs/edited.md). edit: `gap`, `front`, `order`, `steering`, or `mixed`, which gives several texts; missing:
        positions without rows, of a gap; direction `[D]`: of a steering vector; options: attention_mask, states_dtype,
        compute_dtype. Raises InputError for what does not go together."""
        from .mend.mending import mend_all

        batch = texts_of(states, self.decoder.layer, options.pop("attention_mask", None))
        return mend_all(self, batch, edit, missing=missing, direction=direction, **options)

    def score(
        self,
        recovered: Sequence[Recovery],
        texts: Sequence[Any],
        *,
        max_tokens: int | None = None,
        special: bool = True,
    ) -> Score:
        """Recoveries against what was captured: exact match, token accuracy, certified share; also by text.

        texts: given as to `capture`, with its `max_tokens` and `special`.
        """
        check_paired(recovered, texts)
        ids = (self.encode(text, max_tokens, special) for text in texts)
        return score(recovered, [(row, self.decoder.decode(row) or "") for row in ids])

    def calibrate(self, states_dtype: str = "float32", compute_dtype: str = "float32") -> Tolerances:
        """Noise and tolerance for states stored in one precision, computed in another; measured once, then cached."""
        stored, computed = ("float32" if d == "float64" else d for d in (states_dtype, compute_dtype))
        if (key := (stored, computed, name_in_use())) not in self._tolerances:
            self._tolerances[key] = calibrate(self.decoder, self.vocabulary, stored, computed)
        return self._tolerances[key]

    def fit(
        self,
        lens: str = "auto",
        settings: Fit | None = None,
        *,
        text: Iterable[str | Sequence[int]] = (),
        output: str | Path | None = None,
    ) -> FitReport:
        """Fit a lens for this layer, on text that the model writes itself; later inversions draft with it.

        lens: `learned`, as `auto` (minutes, of a large vocabulary 15); `linear` (seconds, on first use anyway; with
        `Fit.minutes` it is made better for so long). settings: see `Fit`; text: texts (or ids)
        like those to be recovered, half of the training if given; output: also write the learned lens there. It is kept
        in the cache folder; interrupted fits go on. Raises InputError for what is out of range.
        """
        from .lens.fit import fit_lens  # and with it what generates text

        ids = [*map(self.encode, self._turns.outside(text))]
        report = fit_lens(self.decoder, self.vocabulary, lens, settings, ids, output)
        forget(self.decoder)  # and look for the new one
        return report

    def check_lengths(self, lengths: Sequence[int]) -> None:
        """InputError when a text has more rows than the model has positions."""
        check_lengths(self.decoder, lengths)

    def checked(self, index: int, item: States | Tensor) -> Tensor:
        """The rows `[T, D]` as fp32, or an InputError that names what is wrong with text `index`."""
        return checked(self.decoder, index, item)
