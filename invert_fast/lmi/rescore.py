"""Ask the target about its own candidates: the beam whose vector is the vector that was seen is the prompt.

One query a candidate, the same access as before, no weights. What matches to rounding is verified: a language model's
vectors of two different prompts differ by far more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .settings import View
from .target import Target

TOLERANCE = 1e-3  # nats, root mean square over entries: fp32 passes in other batches differ by about 1e-6


@dataclass(frozen=True)
class Rescored:
    """chosen: index of each prompt's best candidate; distance: root mean square difference of its log-probs, in nats;
    verified: within the tolerance; queries: asked in all."""

    chosen: list[int]
    distance: list[float]
    verified: list[bool]
    queries: int


def rescore(
    target: Target,
    view: View,
    vectors: Tensor,
    candidates: Sequence[Sequence[Sequence[int]]],
    tolerance: float = TOLERANCE,
) -> Rescored:
    """Choose among each prompt's candidates by the first step's vector.

    vectors `[prompts, steps, width]` as seen; candidates: token ids of the target, best first, for each prompt. A
    candidate that is empty or has ids unknown to the target is never chosen. Nothing is verified against a view with
    noise or one that shows too little (`top_k`): the nearest is chosen all the same.
    """
    flat = [(i, j, list(ids)) for i, beams in enumerate(candidates) for j, ids in enumerate(beams)]
    flat = [entry for entry in flat if _askable(entry[2], target)]
    chosen, distance = [0] * len(candidates), [float("inf")] * len(candidates)
    clean = replace(view, steps=1, noise=0.0)
    asked = target.vectors([ids for _, _, ids in flat], clean)[:, 0] if flat else torch.empty(0)
    for (i, j, _), seen in zip(flat, asked, strict=True):
        off = float((seen - vectors[i, 0]).square().mean().sqrt())
        if off < distance[i]:
            chosen[i], distance[i] = j, off
    exact = not view.noise and not view.top_k
    return Rescored(chosen, distance, [exact and off <= tolerance for off in distance], len(flat))


def _askable(ids: list[int], target: Target) -> bool:
    return 0 < len(ids) <= target.max_length and min(ids) >= 0 and max(ids) < target.vocab_size
