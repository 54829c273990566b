"""How exact what an API told can be: rounding of fp32 sums, the API's own, and the noise that was seen."""

from __future__ import annotations

import numpy as np

from .capabilities import FLOAT32, Capabilities


def rounding(capabilities: Capabilities, bias: float) -> float:
    """Bound on the error of a difference of two reported log-probs: fp32 rounding of biased logits and their
    normaliser (sizes up to bias + 64), the API's own rounding, and the noise that was seen (doubled: few repeats
    show it)."""
    return 8 * FLOAT32 * (bias + 64.0) + 2 * capabilities.resolution + 2 * capabilities.noise


def argmax_rounding(capabilities: Capabilities, bias: np.ndarray | float) -> np.ndarray:
    """Bound on how far a biased logit may lie on the wrong side of another and still win: two fp32 sums."""
    return 4 * FLOAT32 * (np.asarray(bias) + 64.0) + 2 * capabilities.noise
