"""The model's own log-probabilities, and how far from them an extraction may be."""

from __future__ import annotations

import numpy as np

from invert_fast import Inverter
from invert_fast.extract import LocalApi

PROMPT = "The river was"
EVERY_16TH = tuple(range(0, 4096, 16))


def truth(inverter: Inverter, prompt: str = PROMPT) -> np.ndarray:
    logits = LocalApi(inverter).logits(prompt).astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def deviation(found, true: np.ndarray) -> np.ndarray:
    """Of the known entries, from the truth; differences to the best token where the normaliser is unknown."""
    return np.abs(found.log_probs - (true if found.normalised else true - true.max()))[found.known]


def check(found, true: np.ndarray, known: int) -> float:
    """Every stated bound holds; returns the largest error."""
    off = deviation(found, true)
    assert len(found.known) == known
    assert (off <= found.error[found.known]).all()
    assert np.isnan(np.delete(found.log_probs, found.known)).all()
    return float(off.max())
