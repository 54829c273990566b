"""Which lens a fit is of, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from ..types import InputError
from .deepen import deepen_linear
from .settings import Fit, FitReport
from .train import fit_learned, fit_linear_again

KINDS = ("auto", "learned", "linear")


def fit_lens(
    decoder: Decoder,
    vocabulary: Vocabulary,
    kind: str = "auto",
    fit: Fit | None = None,
    text: Sequence[Sequence[int]] = (),
    output: str | Path | None = None,
) -> FitReport:
    """Fit the lens that is asked for, see `Inverter.fit`. `auto`: the learned one; of a large vocabulary the linear
    one, for a while: its drafts are joined by the model's own prior, those of a learned one are not."""
    if kind not in KINDS:
        raise InputError(f"lens '{kind}' is unknown, expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    fit = fit or Fit()
    if kind == "learned" or (kind == "auto" and vocabulary.size < MANY_TOKENS):
        return fit_learned(decoder, vocabulary, fit, text, output)
    if fit.steps or fit.noise or output:
        raise InputError(
            f"steps, noise and output are of the learned lens, this is the linear one (a vocabulary of "
            f"{vocabulary.size:,} tokens): leave them out, or ask for the learned lens"
        )
    if kind == "linear" and fit.minutes is None and not text:
        return fit_linear_again(decoder, vocabulary, fit.seed)
    return deepen_linear(decoder, vocabulary, fit, text)
