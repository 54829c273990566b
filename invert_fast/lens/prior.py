"""The model's own next-token prior in a lens's drafts, free at the last layer: the state before a row gives it.

Where the head is the embedding matrix, as in most models of many tokens, a logit is a product with a token's row, as
is the score of a lens: the prior is added to the proxies, and costs nothing. Where it is not, it is asked for the
tokens of short lists alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.decoder import Decoder
from .base import Lens


@torch.no_grad()
def draft_proxies(decoder: Decoder, lens: Lens, hidden: Tensor, weight: float | None = None) -> Tensor:
    """The proxies of whole texts `[b, T, D] → [b, T, D_e]`, with `weight` times the prior (default: as the fit found
    best) where it is a product with tokens' rows."""
    weight = lens.repair.draft_prior if weight is None else weight
    proxies = lens.proxies(hidden)
    if weight and decoder.layer.near_head and (scale := decoder.tied_scale) is not None:
        proxies[:, 1:] += (weight / scale) * decoder.head_input(hidden[:, :-1]).float()
    return proxies


@torch.no_grad()
def draft_scores(
    decoder: Decoder, lens: Lens, hidden: Tensor, proxies: Tensor, weight: float | None = None
) -> tuple[Tensor, Tensor]:
    """The short lists of whole texts, best first: ids and scores `[b, T, LISTED]`, see `BestTwo.shortlist`."""
    weight = lens.repair.draft_prior if weight is None else weight
    ids, scores = lens.lists(proxies)
    if not weight or not decoder.layer.near_head or decoder.tied_scale is not None:
        return ids, scores
    prior = decoder.logits_of(hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten(0, 1)).view_as(ids[:, 1:])
    scores[:, 1:] += weight * prior.masked_fill(ids[:, 1:] < 0, 0.0)
    scores, order = scores.sort(-1, descending=True)
    return ids.gather(-1, order), scores
