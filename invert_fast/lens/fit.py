"""Which lens a fit is of, by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from ..types import InputError
from .deepen import deepen_linear
from .fit_large import fit_large
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
    """Fit the lens that is asked for, see `Inverter.fit`. `auto`: the learned one."""
    if kind not in KINDS:
        raise InputError(f"lens '{kind}' is unknown, expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    fit = fit or Fit()
    if kind != "linear":
        folder = None if output is None else Path(output).absolute().parent
        if folder is not None and not os.access(folder, os.W_OK):  # told now, not after the training
            raise InputError(f"{output} cannot be written: give a file in a folder that exists and is yours to write")
        learned = fit_learned if vocabulary.size < MANY_TOKENS else fit_large
        return learned(decoder, vocabulary, fit, text, output)
    if fit.steps or fit.noise or output:
        raise InputError("steps, noise and output are of the learned lens: leave them out, or ask for that")
    if fit.minutes is None and not text:
        return fit_linear_again(decoder, vocabulary, fit.seed)
    return deepen_linear(decoder, vocabulary, fit, text)
