"""What a training step is made of: which prompts, at which rate, by which optimizers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..storage.checkpoint import step_seed
from .muon import Muon
from .network import PromptInverter
from .settings import Training


def optimizers(net: PromptInverter, how: Training) -> list[torch.optim.Optimizer]:
    """Adam for all, or Muon for matrices; the embedding table and vectors always have Adam."""
    table = {id(net.body.get_input_embeddings().weight), id(net.body.get_output_embeddings().weight)}
    matrices, tables, rest = [], [], []
    if net.shape.view.kind == "text":
        table.add(id(net.front.get_parameter("table.weight")))
    for name, parameter in net.named_parameters():
        small = parameter.dim() < 2 or "relative" in name or name.endswith("place")
        chosen = tables if id(parameter) in table else rest if small or how.optimizer == "adam" else matrices
        chosen.append(parameter)
    groups = [{"params": rest, "scale": 1.0}, {"params": tables, "scale": how.embedding_rate}]
    adam = torch.optim.AdamW(groups, lr=how.rate, betas=(0.9, 0.98), weight_decay=0.0)
    if not matrices:
        return [adam]
    return [Muon([{"params": matrices, "scale": 1.0}], lr=how.rate), adam]


def batch_rows(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Indices of the prompts of a step: each epoch is a permutation of its own, and a batch may span two."""
    at = torch.arange(step * batch, (step + 1) * batch)
    out = torch.empty(batch, dtype=torch.long)
    for epoch in (at // count).unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(step_seed(seed, -1 - epoch)))
        inside = at // count == epoch
        out[inside] = order[at[inside] % count]
    return out


def rate_at(step: int, how: Training) -> float:
    """Share of the learning rate at a step: up linearly over `warm`, level, down linearly over the last `fall`."""
    up = min(1.0, (step + 1) / how.warm) if how.warm else 1.0
    return min(up, (how.steps - step) / (how.fall * how.steps)) if how.fall else up
