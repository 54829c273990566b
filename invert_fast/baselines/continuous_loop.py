"""The continuous commit-once loop of Słowikowski and Majewski (arXiv 2607.00852), Algorithm 1 with Table 1's presets.

At each position a proxy embedding is optimised by Adam until its state matches the target, never projected on a token
on the way. Then, once, the C tokens nearest to it by L1 are run one at a time in order of distance; the first whose
discrete loss is under the threshold is committed, else the nearest.

As in Algorithm 1, the step of line 7 is taken before the test of line 8: the proxy that leaves the loop is one update
past the loss that ended it. The operating points of Table 2 start from zeros; line 3's random token is an option.

Assumed where the paper is silent: the whole prefix is run with the proxy in every step (no KV cache), and the discrete
threshold ("within tolerance", Section 2) is that of the loop, 1e-4: wrong tokens are a hundred times above it and the
right one a million times below.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import PreTrainedModel

from .common import Result, WatchedModel

LEARNING_RATE = 0.05
WEIGHT_DECAY = 1e-5
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Preset:
    """An operating point of Table 1, and the thresholds that all share.

    steps: the budget K; candidates: C, at most V; loss_threshold: MSE below which the loop ends (`loss_th`);
    discrete_threshold: MSE below which a candidate is committed.
    """

    steps: int
    candidates: int
    loss_threshold: float = 1e-4
    discrete_threshold: float = 1e-4


PRESETS = {"fast": Preset(600, 100), "baseline": Preset(1000, 2000), "high-accuracy": Preset(2000, 10_000)}


def invert(
    model: PreTrainedModel,
    hidden: Tensor,
    layer: int | str = -1,
    *,
    preset: str | Preset = "fast",
    init: str = "zeros",
    seed: int = 0,
) -> Result:
    """Recover the T tokens of `hidden [T, D]`, states of `layer` (see `WatchedModel`; the paper's is −1) of one text.

    preset: fast, baseline, high-accuracy or one's own; init: `zeros` or `token`, the embedding of a random token drawn
    by `seed` (nothing else is random).
    """
    start = time.perf_counter()
    settings = PRESETS[preset] if isinstance(preset, str) else preset
    if init not in ("zeros", "token"):
        raise ValueError(f"init {init!r} is unknown, expected 'zeros' or 'token'")
    watched = WatchedModel(model, layer)
    E, generator = watched.embedding, torch.Generator().manual_seed(seed)
    token_ids, accepted, iterations, tried = [], [], [], []
    prefix = E[:0]
    for target in watched.targets(hidden):
        first = E[int(torch.randint(len(E), (), generator=generator))]
        proxy = torch.zeros_like(first) if init == "zeros" else first.clone()
        iterations.append(_optimise(watched, prefix, target, proxy, settings))
        token, runs, passed = _commit(watched, prefix, target, proxy, settings)
        token_ids.append(token)
        tried.append(runs)
        accepted.append(passed)
        prefix = torch.cat([prefix, E[token][None]])
    return Result(
        token_ids,
        accepted,
        iterations,
        tried,
        forward_tokens=watched.forward_tokens,
        backward_tokens=watched.backward_tokens,
        seconds=time.perf_counter() - start,
    )


def nearest_tokens(E: Tensor, proxy: Tensor, count: int) -> list[int]:
    """The `count` tokens nearest to the proxy by L1, nearest first (line 12); all of V where there are no more."""
    return (E - proxy).abs().sum(dim=1).topk(min(count, len(E)), largest=False).indices.tolist()


def _optimise(watched: WatchedModel, prefix: Tensor, target: Tensor, proxy: Tensor, settings: Preset) -> int:
    """Lines 4–11: moves the proxy `[D_embedding]` in place; the number of steps taken."""
    proxy.requires_grad_()
    optimizer = torch.optim.Adam([proxy], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler = CosineAnnealingLR(optimizer, T_max=settings.steps)
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        loss = mse_loss(watched.last_state(prefix, proxy), target)
        watched.backward(loss, proxy, len(prefix) + 1)
        clip_grad_norm_([proxy], CLIP_NORM)
        optimizer.step()
        scheduler.step()
        if loss.item() < settings.loss_threshold:
            return step
    return settings.steps


@torch.no_grad()
def _commit(
    watched: WatchedModel, prefix: Tensor, target: Tensor, proxy: Tensor, settings: Preset
) -> tuple[int, int, bool]:
    """Lines 12–14: (token, candidates run, whether it is under the discrete threshold)."""
    candidates = nearest_tokens(watched.embedding, proxy, settings.candidates)
    for runs, token in enumerate(candidates, start=1):
        discrete_loss = mse_loss(watched.last_state(prefix, watched.embedding[token]), target)
        if discrete_loss.item() < settings.discrete_threshold:
            return token, runs, True
    return candidates[0], len(candidates), False
