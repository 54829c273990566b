"""The whole vector from D + k entries: logits lie in the D-dimensional image of the unembedding.

z = W h + b, so D + 1 differences of log-probs fix h, and with it every entry (Finlayson et al. 2024; Carlini et al.
2024). The k entries too many show whether these log-probs are of this unembedding at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..model.decoder import Decoder
from ..types import InputError
from .bounds import Bounds
from .given import HasDecoder, decoder_of

_LINEAR = 2e-2  # of the logits' spread; fp16 rounding is below, a cap or a scale far above


@dataclass(frozen=True)
class Image:
    """The unembedding of the model behind the API: weight `[V, D]`, bias `[V]` or None, fp64, logits = W h + b.

    A head that caps its logits (softcap) has no such image.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    def __post_init__(self):
        if self.weight.ndim != 2 or (self.bias is not None and self.bias.shape != self.weight.shape[:1]):
            shape = None if self.bias is None else list(self.bias.shape)
            raise InputError(
                f"the unembedding has weight {list(self.weight.shape)} and bias {shape}, expected [V, D] and [V]"
            )

    @property
    def width(self) -> int:
        """Directions that logits can lie in: at most the width of the model's states."""
        return self.weight.shape[1]


@dataclass(frozen=True)
class Plan:
    """tokens `[n]`: what to extract; solve `[V, n]`: gaps of all tokens from those; amplification: by how much the
    largest error may grow on the way (largest absolute row sum); condition: of the system."""

    tokens: np.ndarray
    solve: np.ndarray
    amplification: float
    condition: float


def plan(image: Image, reference: int, extra: int = 64, seed: int = 0, among: np.ndarray | None = None) -> Plan:
    """Choose D + `extra` tokens at random (of `among`: those that are known already) and prepare the solve.

    Raises InputError where the vocabulary has fewer than D + 2 tokens, or the rows do not span the image.
    """
    size, width = image.weight.shape
    pool = np.setdiff1d(np.arange(size) if among is None else among, [reference])
    count = min(len(pool), width + extra)
    if count < width + 1:
        raise InputError(
            f"the image of this unembedding has {width} dimensions, which takes {width + 1} tokens and the reference; "
            f"there are {len(pool)}: extract all tokens, or more of them"
        )
    tokens = np.sort(np.random.default_rng(seed).choice(pool, count, replace=False)) if among is None else pool
    rows = torch.from_numpy(image.weight[reference] - image.weight).double()  # x = (w_ref − W) h + (b_ref − b)
    left, values, right = torch.linalg.svd(rows[torch.from_numpy(tokens)], full_matrices=False)
    if float(values[-1]) < 1e-8 * float(values[0]):
        raise InputError(
            f"the unembedding's rows span fewer than its {width} dimensions: leave it out and extract all tokens"
        )
    solve = (rows @ (right.T / values)) @ left.T
    return Plan(tokens, solve.numpy(), float(solve.abs().sum(1).max()), float(values[0] / values[-1]))


def fill(bounds: Bounds, image: Image, made: Plan) -> float:
    """Set the intervals of all tokens from those of the plan; returns the largest misfit of the solve, nats.

    Raises InputError where the misfit is more than the intervals allow: the unembedding is another model's.
    """
    tokens, reference = made.tokens, bounds.reference
    offset = np.zeros(len(bounds.low)) if image.bias is None else image.bias[reference] - image.bias
    middle = (bounds.low[tokens] + bounds.high[tokens]) / 2
    half = (bounds.high[tokens] - bounds.low[tokens]) / 2
    gaps = made.solve @ (middle - offset[tokens]) + offset
    error = np.abs(made.solve) @ half + 1e-9
    misfit = float(np.abs(gaps[tokens] - middle).max())
    allowed = half + error[tokens]
    if bool((np.abs(gaps[tokens] - middle) > allowed).any()):
        raise InputError(
            f"{len(tokens)} extracted log-probs miss the image of the unembedding by {misfit:.3g} nats, expected at "
            f"most {float(allowed.max()):.3g}: the API serves another model (or changes its logits); leave --model out "
            "and extract all tokens"
        )
    told_low, told_high = bounds.low[tokens].copy(), bounds.high[tokens].copy()
    bounds.low, bounds.high = np.maximum(gaps - error, 0.0), np.maximum(gaps + error, 0.0)
    bounds.low[tokens] = np.maximum(bounds.low[tokens], told_low)
    bounds.high[tokens] = np.minimum(bounds.high[tokens], told_high)
    bounds.low[reference] = bounds.high[reference] = 0.0
    return misfit


@torch.no_grad()
def image_of(model: Decoder | HasDecoder) -> Image:
    """The unembedding of a loaded model. InputError where its logits are not W h + b of its final states."""
    decoder = decoder_of(model).full()
    head = decoder.model.get_output_embeddings()
    assert head is not None, "a causal language model has a head"
    weight, bias = head.weight.detach(), getattr(head, "bias", None)
    ids = (torch.arange(8, device=decoder.device) * 7 % decoder.usable_ids)[None]
    logits = decoder.model(input_ids=ids, use_cache=False).logits[0].double().cpu()
    linear = decoder.capture(ids)[0].double().cpu() @ weight.double().cpu().T
    if bias is not None:
        linear = linear + bias.detach().double().cpu()
    off = float((logits - linear).abs().max() / logits.std())
    if off > _LINEAR:
        raise InputError(
            f"this model's logits are not linear in its final states (off by {off:.2g} of their spread; a cap or a "
            "scale?): leave the unembedding out and extract all tokens"
        )
    return Image(weight.double().cpu().numpy(), None if bias is None else bias.detach().double().cpu().numpy())
