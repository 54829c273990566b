"""How loud the noise in states is, when nobody says.

The states of all first tokens are known, so the nearest of them to a text's first row leaves the noise of that row
alone: over D numbers that says its deviation to one part in √2D. What the lens drafts behind is mostly right; those of
its residuals that are as loud as that, to four deviations, say it more exactly.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from ..engine.tolerances import Tolerances
from ..lens.choose import choose_lens
from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from ..storage.noise import GAUSSIAN, LAPLACIAN, Noise
from .openings import openings_of

log = logging.getLogger("invert_fast")

_TEXTS, _ROWS = 16, 128  # looked at, and rows of each
_LOOKS = 2  # at which residuals are those of true tokens
_WITHIN = 4.0  # deviations from the first tokens' level: others are of wrong tokens
_HEAVY = 1.5  # excess kurtosis from which noise is Laplacian (3), not normal (0)
_TINY = 1e-30


@torch.no_grad()
def estimate_noise(decoder: Decoder, vocabulary: Vocabulary, own: Tolerances, texts: list[Tensor]) -> Noise | None:
    """Relative to the rows, of texts `[T, D]`; None where it is within what was calibrated. own: tolerances of such
    states without noise."""
    texts = [rows[:_ROWS].to(decoder.device) for rows in texts if len(rows)][:_TEXTS]
    if not texts:
        return None
    lens = choose_lens(decoder, vocabulary)
    away, clean = zip(*(_drafted(decoder, vocabulary, lens, rows) for rows in texts), strict=True)
    level = [a.square().sum(-1) / c.square().sum(-1).clamp_min(_TINY) for a, c in zip(away, clean, strict=True)]
    every, rows = torch.cat(level), torch.cat(away)
    centre, of = torch.stack([rows[0] for rows in level]).median(), len(level)
    for _ in range(_LOOKS):
        units = torch.nn.functional.normalize(rows[(every / centre - 1).abs() <= 0.5], dim=-1).square() * decoder.width
        kind = LAPLACIAN if len(units) and float(units.square().mean()) - 3 > _HEAVY else GAUSSIAN
        spread = math.sqrt((5 if kind == LAPLACIAN else 2) / decoder.width)  # of the mean of the squares of D numbers
        like = (every / centre - 1).abs() <= _WITHIN * spread * math.sqrt(1 + 1 / of)
        if bool(like.any()):
            centre, of = every[like].mean(), int(like.sum())
    sigma = math.sqrt(max(0.0, float(centre) - max(own.own) ** 2))
    if sigma <= 2 * max(own.plain_noise):
        log.info("residuals of %.2g are no louder than the precision of these states makes them: no noise", sigma)
        return None
    error = math.sqrt(1 / (2 * decoder.width * of))
    log.info("noise: %s, %.4g of a row (± %.1f %%), from %d rows", kind, sigma, 100 * error, of)
    return Noise(kind, float(f"{sigma:.6g}"))


def _drafted(decoder: Decoder, vocabulary: Vocabulary, lens, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of the rows `[T, D]` of a text beside the states of its draft, and these states."""
    ids = lens.draft(rows[None])
    if vocabulary.size < MANY_TOKENS:
        first = openings_of(decoder)
        nearest = (first - rows[0]).square().sum(-1).masked_fill(~vocabulary.allowed, torch.inf).argmin()
        ids[0, 0] = nearest
    states = decoder.states(ids)[0].float()
    return rows - states, states
