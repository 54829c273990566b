"""SIPIT with its gradient policy, as its authors released it (Nikolaou et al., arXiv 2510.15511).

At position t a proxy starts as the embedding of a uniformly random token and descends by SGD. After *every* step it is
projected on the nearest token not banned yet; that token is run, committed if it reproduces the target, banned if not.
Now and then the proxy snaps to the row it was projected on. Every forward and backward pass runs the whole prefix with
the proxy last: batch 1, no KV cache. After V iterations the last token tried is committed, and nobody is told.

Deviations from the release:
* `layer` is an argument. The release inverts `before_norm`; −1 inverts `hidden_states[-1]`, after the final norm.
* Targets are given, where the release computes them itself, prefix by prefix: `capture(..., prefix_by_prefix=True)`.
  States of one pass over the whole text are off by rounding, which 1e-5 does not forgive: on the bundled model 0.7 % of
  the right tokens fail the test after the final norm and 34 % before it. A failure costs V iterations and the text.
* The result says which tokens passed the test; the release does not keep it.
Assumed where descriptions are silent: the loss is the *sum* of squared differences (clipping hides its scale far from
the minimum), LinearLR runs over V iterations, and the row of a snap is that of the token just tried.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LinearLR
from transformers import PreTrainedModel

from .common import Result, WatchedModel

LEARNING_RATE = 1.0
CLIP_NORM = 1.0
TOLERANCE = 1e-5  # rtol and atol of the accept test
SNAP_EVERY, SNAP_VOCABULARY = 50, 25_000
FINAL_RATE = 0.01  # of LinearLR, as a factor


def invert(
    model: PreTrainedModel, hidden: Tensor, layer: int | str = -1, *, seed: int = 0, linear_lr: bool = False
) -> Result:
    """Recover the T tokens of `hidden [T, D]`, states of `layer` (see `WatchedModel`) of one text.

    seed: of the random tokens that proxies start from; linear_lr: let the learning rate fall from 1 to 0.01 (an option
    of the release, off in its command line).
    """
    start = time.perf_counter()
    watched = WatchedModel(model, layer)
    generator = torch.Generator().manual_seed(seed)
    token_ids, accepted, iterations = [], [], []
    prefix = watched.embedding[:0]
    for target in watched.targets(hidden):
        token, steps, passed = _find_token(watched, prefix, target, generator, linear_lr)
        token_ids.append(token)
        iterations.append(steps)
        accepted.append(passed)
        prefix = torch.cat([prefix, watched.embedding[token][None]])
    return Result(
        token_ids,
        accepted,
        iterations,
        tried=list(iterations),  # one candidate an iteration
        forward_tokens=watched.forward_tokens,
        backward_tokens=watched.backward_tokens,
        seconds=time.perf_counter() - start,
    )


def snap_interval(position: int, vocab_size: int) -> int:
    """Iterations between snaps: 50 · (1 + [t = 0] · ⌊V / 25000⌋)."""
    return SNAP_EVERY * (1 + (vocab_size // SNAP_VOCABULARY if position == 0 else 0))


def _find_token(
    watched: WatchedModel, prefix: Tensor, target: Tensor, generator: torch.Generator, linear_lr: bool
) -> tuple[int, int, bool]:
    """(token, iterations, passed) for the position after `prefix [t, D_embedding]`."""
    E, t = watched.embedding, len(prefix)
    V = len(E)
    first = int(torch.randint(V, (), generator=generator))
    proxy = E[first].clone().requires_grad_()
    optimizer = torch.optim.SGD([proxy], lr=LEARNING_RATE)
    scheduler = LinearLR(optimizer, start_factor=1.0, end_factor=FINAL_RATE, total_iters=V) if linear_lr else None
    banned = torch.zeros(V, dtype=torch.bool, device=E.device)
    token = first
    for iteration in range(1, V + 1):
        optimizer.zero_grad()
        loss = (watched.last_state(prefix, proxy) - target).square().sum()
        watched.backward(loss, proxy, t + 1)
        clip_grad_norm_([proxy], CLIP_NORM)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        with torch.no_grad():
            token = int((E - proxy).norm(dim=1).masked_fill(banned, float("inf")).argmin())
            if torch.allclose(watched.last_state(prefix, E[token]), target, rtol=TOLERANCE, atol=TOLERANCE):
                return token, iteration, True
            banned[token] = True
            if iteration % snap_interval(t, V) == 0:
                proxy.copy_(E[token])
    return token, V, False
