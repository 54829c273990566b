"""What the baselines share: a plain Hugging Face model watched at one layer, and what an inversion gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BEFORE_NORM = "before_norm"


@dataclass(frozen=True)
class Result:
    """One text of T tokens, recovered or not, and what it cost.

    token_ids: T committed ids; accepted: per token, whether it passed the method's own test (the published methods
    commit either way and do not say); iterations: per token, optimisation steps (VMA has none: batches of candidates);
    tried: per token, candidates that were run; forward_tokens, backward_tokens: tokens through the model, the whole
    prefix counted wherever it is run again; seconds: wall time.
    """

    token_ids: list[int]
    accepted: list[bool]
    iterations: list[int]
    tried: list[int]
    forward_tokens: int
    backward_tokens: int
    seconds: float


class WatchedModel:
    """States of one layer of a model in eval mode, and a count of the tokens that went through it.

    layer: an index into Hugging Face's `hidden_states` (−1: after the final norm), or `before_norm`: the output of the
    last block, which is in none of them. Neither the model nor its gradients are changed.
    """

    def __init__(self, model: PreTrainedModel, layer: int | str = -1):
        self.model, self.body = model, model.base_model
        blocks = model.config.get_text_config().num_hidden_layers
        if layer != BEFORE_NORM and (isinstance(layer, str) or not -blocks - 1 <= layer <= blocks):
            raise ValueError(
                f"layer {layer!r} is not in this model: give a hidden_states index from {-blocks - 1} to {blocks}, "
                f"or '{BEFORE_NORM}'"
            )
        self.layer = layer
        self.last_block = next(m for m in self.body.modules() if isinstance(m, nn.ModuleList) and len(m) == blocks)[-1]
        table: Any = model.get_input_embeddings()
        with torch.no_grad():  # not `.weight`: some families scale inside the module
            self.embedding: Tensor = table(torch.arange(table.weight.shape[0], device=table.weight.device))
        self.forward_tokens = self.backward_tokens = 0

    def states(self, embeds: Tensor, cache: Any = None) -> Tensor:
        """One forward pass: embeddings `[B, n, D_embedding]` → states `[B, n, D]`; `cache` is the KV before them."""
        self.forward_tokens += embeds.shape[0] * embeds.shape[1]
        kept: list[Any] = []
        hook = self.last_block.register_forward_hook(lambda _module, _args, out: kept.append(out))
        try:
            out = self.body(
                inputs_embeds=embeds,
                past_key_values=cache,
                use_cache=cache is not None,
                output_hidden_states=self.layer not in (-1, BEFORE_NORM),
            )
        finally:
            hook.remove()
        if isinstance(self.layer, str):
            return kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        return out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]

    def last_state(self, prefix: Tensor, last: Tensor) -> Tensor:
        """State `[D]` of the embedding `last [D_embedding]` after `prefix [t, D_embedding]`: t + 1 tokens are run."""
        return self.states(torch.cat([prefix, last[None]])[None])[0, -1]

    def backward(self, loss: Tensor, proxy: Tensor, tokens: int) -> None:
        """Gradient of the loss, into the proxy alone; the pass goes back through `tokens` tokens."""
        self.backward_tokens += tokens
        loss.backward(inputs=[proxy])

    def targets(self, hidden: Tensor) -> Tensor:
        """Given states `[T, D]` as this model computes: its device and its precision."""
        return hidden.to(self.embedding)


@torch.no_grad()
def capture(
    model: PreTrainedModel, ids: Sequence[int], layer: int | str = -1, *, prefix_by_prefix: bool = False
) -> Tensor:
    """States `[T, D]` of a text, to be inverted.

    prefix_by_prefix: one pass per position over the tokens up to it, as the release of SIPIT makes its targets; the
    same token then gives the same bits. Otherwise one pass for all, as states are found in practice.
    """
    watched = WatchedModel(model, layer)
    embeds = watched.embedding[torch.tensor(list(ids), dtype=torch.long, device=watched.embedding.device)]
    if not prefix_by_prefix:
        return watched.states(embeds[None])[0]
    return torch.stack([watched.last_state(embeds[:t], embeds[t]) for t in range(len(embeds))])
