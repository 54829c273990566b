"""VMA, the vocabulary-matching attack on unpermuted states (Thomas et al., arXiv 2505.18332).

No gradient: at each position all tokens are candidates, in the order of the model's own next-token probability for the
prefix committed so far (Appendix A). Batches of them are run on the prefix's shared KV cache. The first batch whose
best L1 distance to the target is under epsilon gives the token; when there is none, the best of all V does.
The first position has no prefix, so there tokens are run in the order of their ids.

Deviations from the release:
* The KV cache is Hugging Face's, copied once for each candidate of a batch; the release has its own forward pass for
  Llama that broadcasts one copy. The pass that asks for the order leaves the cache; the release makes that pass without
  a cache and keeps the winners' keys and values. Both run t + candidates tokens at position t.
* All blocks are run whatever the layer; the release stops at the layer.
* `batch_size` is 256; the release's default is 1000. epsilon, a bound on a *sum* of absolute differences, is
  the release's default; the paper fits one for each model and layer. Where it is under the rounding noise (states
  before the final norm are ten times longer), the answer stays right and the position costs all of V.
Nothing is random.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .common import Result, WatchedModel

EPSILON = 1e-3


@torch.no_grad()
def invert(
    model: PreTrainedModel,
    hidden: Tensor,
    layer: int | str = -1,
    *,
    batch_size: int = 256,
    epsilon: float = EPSILON,
) -> Result:
    """Recover the T tokens of `hidden [T, D]`, states of `layer` (see `WatchedModel`) of one text.

    batch_size: candidates in one forward pass; epsilon: L1 distance `Σ|ĥ − h|` below which a batch's best is taken.
    """
    start = time.perf_counter()
    watched = WatchedModel(model, layer)
    token_ids, accepted, batches, tried = [], [], [], []
    for target in watched.targets(hidden):
        order, cache = candidate_order(watched, token_ids)
        best, best_distance, runs, passes = -1, float("inf"), 0, 0
        for ids in order.split(batch_size):
            distances = (_candidate_states(watched, ids, cache) - target).abs().sum(dim=1)
            runs, passes = runs + len(ids), passes + 1
            if distances.min().item() < best_distance:
                best, best_distance = int(ids[distances.argmin()]), distances.min().item()
            if best_distance < epsilon:
                break
        token_ids.append(best)
        accepted.append(best_distance < epsilon)
        batches.append(passes)
        tried.append(runs)
    return Result(
        token_ids,
        accepted,
        iterations=batches,
        tried=tried,
        forward_tokens=watched.forward_tokens,
        backward_tokens=0,
        seconds=time.perf_counter() - start,
    )


def candidate_order(watched: WatchedModel, prefix: list[int]) -> tuple[Tensor, Any]:
    """All V ids, likeliest next token first, and the KV cache of the prefix (None where there is no prefix)."""
    V, device = len(watched.embedding), watched.embedding.device
    if not prefix:
        return torch.arange(V, device=device), None
    watched.forward_tokens += len(prefix)
    out = watched.model(input_ids=torch.tensor([prefix], device=device), use_cache=True)
    return out.logits[0, -1, :V].argsort(descending=True, stable=True), out.past_key_values


def _candidate_states(watched: WatchedModel, ids: Tensor, cache: Any) -> Tensor:
    """States `[B, D]` of each of the ids `[B]` as the next token; the cache of the prefix stays as it is."""
    embeds = watched.embedding[ids][:, None]
    if cache is None:
        return watched.states(embeds)[:, 0]
    cache = copy.deepcopy(cache)  # a pass appends to the cache it is given
    cache.batch_repeat_interleave(len(ids))
    return watched.states(embeds, cache)[:, 0]
