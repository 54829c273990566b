"""What an inverter is shown of the target's next-token distributions, and how a provider may blur it.

The switches of Morris et al. 2023 (2311.13647): the full vector of log-probs, raw logits instead, the k largest only,
and the sampling settings a provider applies (temperature, top-p) or noise that it adds. `steps` > 1 and `entries` are
the multi-step input of PILS (2506.17090): log-probs of D+k fixed tokens at each of n generated steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..types import InputError
from .settings import View

_LEFT_OVER = 1e-4  # mass of all that is not shown where nothing says how much it is: an API shows no zeros


def show(logits: Tensor, view: View, generator: torch.Generator | None = None) -> Tensor:
    """Logits `[..., V]` → what the view shows of them, `[..., entries or V]`, fp32.

    Temperature, then top-p, then top-k, as samplers apply them, then noise; log-probs are normalised after each. The
    generator draws the noise and is required with it.
    """
    logits = logits.float()
    if view.kind == "log-probs":
        scores = (logits / view.temperature).log_softmax(-1)
        if view.top_p < 1:
            scores = _nucleus(scores, view.top_p)
        if view.top_k:
            scores = _largest(scores, view.top_k)
    else:
        scores = logits
    if view.noise:
        assert generator is not None, "noise is drawn from a generator"
        scores = scores + view.noise * torch.randn(scores.shape, generator=generator).to(scores.device)
        scores = scores.log_softmax(-1) if view.kind == "log-probs" else scores
    tokens = view.tokens(scores.shape[-1])
    return scores if tokens is None else scores[..., tokens.to(scores.device)]


def _nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens with mass ≥ top_p, renormalised; the others share a residue."""
    ordered, order = log_probs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, before < top_p)
    inside = log_probs.masked_fill(~kept, float("-inf")).log_softmax(-1) + math.log1p(-_LEFT_OVER)
    outside = math.log(_LEFT_OVER) - (~kept).sum(-1, keepdim=True).clamp_min(1).log()
    return torch.where(kept, inside, outside).log_softmax(-1)


def _largest(log_probs: Tensor, k: int) -> Tensor:
    """The k largest log-probs as they are; the mass left over lies evenly on the other tokens."""
    V = log_probs.shape[-1]
    if k >= V:
        return log_probs
    top = log_probs.topk(k, dim=-1)
    left = (1 - top.values.double().exp().sum(-1, keepdim=True)).clamp_min(1e-9)
    rest = (left.log() - math.log(V - k)).float().expand(log_probs.shape)
    return rest.scatter(-1, top.indices, top.values)


def check_vectors(vectors: Tensor, view: View, vocab_size: int) -> None:
    """InputError unless `[prompts, steps, width]` are what a view of a target of this vocabulary shows."""
    wanted = (view.steps, view.width(vocab_size))
    if vectors.dim() != 3 or tuple(vectors.shape[1:]) != wanted:
        raise InputError(
            f"vectors of shape {list(vectors.shape)}, expected [prompts, {wanted[0]}, {wanted[1]}] (steps, entries): "
            f"the inverter was trained on a vocabulary of {vocab_size}; show it that model's vectors, or train another"
        )
    if not vectors.is_floating_point():
        raise InputError(f"vectors are {vectors.dtype}, expected floating-point log-probs or logits")
    bad = ~vectors.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        raise InputError(
            f"vector {int(bad.nonzero()[0])} has an entry that is infinite or not a number, expected finite log-probs: "
            "a provider that masks tokens shows no value for them; choose other entries, or top_k"
        )
    if view.kind == "text" and not bool(((vectors >= 0) & (vectors < vocab_size) & (vectors == vectors.round())).all()):
        raise InputError(
            f"the text has ids that are none of 0 to {vocab_size - 1}: encode it with the target's tokenizer"
        )
    if view.kind == "log-probs":
        mass = vectors.double().exp().sum(-1)
        off = (mass > 1.01) if view.entries is not None else (mass - 1).abs() > 0.01
        if bool(off.any()):
            index = int(off.flatten(1).any(1).nonzero()[0])
            raise InputError(
                f"vector {index} has probabilities that sum to {float(mass[index].flatten()[0]):.4g}, expected "
                f"{'at most 1' if view.entries is not None else '1'}: are these logits? take log_softmax first"
            )
