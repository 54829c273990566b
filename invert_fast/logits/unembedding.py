"""From final states to logits, as one linear map: what has to be undone. Checked against the model, never assumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import Decoder
from ..model.precision import products
from ..types import InputError, dtype_named

_PROBE_TOKENS = 8
_AGREES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the logits' spread


@dataclass(frozen=True)
class Unembedding:
    """logits = cap(scale · (W h + b)), with cap(z) = softcap · tanh(z / softcap), or z where there is none.

    weight `[V, D]` (tied to the embedding in many models; never copied); bias `[V]` or None; scale: some families
    multiply or divide all logits; softcap: Gemma 2 and 3 bound them.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @property
    def size(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @torch.no_grad()
    def logits(self, hidden: Tensor, compute_dtype: str = "float32") -> Tensor:
        """`[..., D] → [..., V]` fp32, rounded where a forward pass in `compute_dtype` rounds."""
        dtype = dtype_named(compute_dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with products(self.weight.device):
            z = F.linear(hidden.to(self.weight.device, dtype), self.weight.to(dtype), bias) * self.scale
        return (z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap).float()

    def linear(self, logits: Tensor) -> Tensor:
        """What W h + b was: undoes cap and scale of raw logits. InputError where a logit is beyond the cap."""
        if self.softcap is not None:
            share = logits / self.softcap
            if bool((share.abs() >= 1).any()):
                raise InputError(
                    f"a logit of {float(logits[share.abs() >= 1][0]):.4g} is beyond this model's cap of "
                    f"{self.softcap:g}: give the logits as the model returns them, not log-probs, in float32"
                )
            logits = torch.atanh(share) * self.softcap
        return logits / self.scale


@torch.no_grad()
def unembedding(decoder: Decoder) -> Unembedding:
    """The unembedding of a decoder seen from its final norm.

    A short text is run through the model itself, and its logits must follow from its final states by this map. Raises
    InputError where they do not (a head that is no single linear map), or where the decoder is of another layer.
    """
    if not decoder.layer.normed:
        raise InputError(
            f"this inverter is of layer {decoder.layer.name}, but logits determine the states after the final norm: "
            "make it with layer=-1"
        )
    head = decoder.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight.dim() != 2:
        raise InputError(
            f"the head of model family '{decoder.model.config.model_type}' is a {type(head).__name__}, expected one "
            "linear unembedding: recover from hidden states instead (invert)"
        )
    config = decoder.model.config.get_text_config()
    found = Unembedding(weight.detach(), getattr(head, "bias", None), 1.0, None)
    ids = (torch.arange(min(_PROBE_TOKENS, decoder.max_length), device=decoder.device) * 7 % decoder.usable_ids)[None]
    theirs = decoder.model(input_ids=ids, use_cache=False).logits.float()
    hidden, name = decoder.capture(ids), str(decoder.dtype).removeprefix("torch.")
    close = _AGREES.get(decoder.dtype, 1e-4)
    if hidden.shape[-1] != found.width or theirs.shape[-1] != found.size:
        raise InputError(
            f"the unembedding is {list(weight.shape)}, the final states are {hidden.shape[-1]} wide and the logits "
            f"{theirs.shape[-1]}: expected one linear map from states to logits: recover from hidden states (invert)"
        )
    ours = found.logits(hidden, name)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = 1.0 if cap else float((ours * theirs).sum() / ours.square().sum().clamp_min(1e-30))
    scale = 1.0 if abs(scale - 1) < close else scale
    found = Unembedding(found.weight, found.bias, scale, float(cap) if cap else None)
    off = (found.logits(hidden, name) - theirs).abs().max() / theirs.std().clamp_min(1e-30)
    if not float(off) < close or not scale > 0:
        raise InputError(
            f"the logits of model family '{decoder.model.config.model_type}' do not follow linearly from its final "
            f"states (off by {float(off):.1e} of their spread, expected {close:g}): recover from hidden states (invert)"
        )
    return found
