"""A second look at doubtful drafted tokens: the lens's score with the model's own next-token log-probability.

A lens says how well a token explains a state; how likely it was to stand there it does not know. States of the last
layer tell that without another forward pass, by the head applied to the row before. Asked for doubtful tokens alone, a
few of a hundred, it costs little and puts almost half of the wrong ones right before any is verified.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.decoder import Decoder
from .base import Lens

_LOOK_AGAIN = 0.01  # probability of being wrong above which a drafted token is looked at again
_RANDOM = 0.3  # of the tokens, as far as the prior knows: what a model would never write is not to be talked away
_SCORES_AT_ONCE = 1 << 21


def doubtful(error: Tensor) -> tuple[Tensor, Tensor]:
    """Text and position, `[n]` each, of the drafted tokens to look at again. error `[b, T]`: how likely each is wrong.
    Position 0 has no prior."""
    text, position = (error[:, 1:] > _LOOK_AGAIN).nonzero(as_tuple=True)
    return text, position + 1


@torch.no_grad()
def look_again(
    decoder: Decoder, lens: Lens, hidden: Tensor, proxies: Tensor, text: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """The best tokens of some rows by lens and prior, and their lead over the second best: `[n]` each.

    hidden `[b, T, D]`: states of the last layer; proxies `[b, T, D_e]`: what the lens made of them; text, position
    `[n]`: the rows, none at position 0.
    """
    ids, leads = [], []
    size = len(decoder.embedding)
    rows = max(1, _SCORES_AT_ONCE // size)
    for b, t in zip(text.split(rows), position.split(rows), strict=True):
        prior = decoder.log_probs(hidden[b, t - 1]) + math.log(1 - _RANDOM)
        prior = torch.logaddexp(prior, prior.new_full((), math.log(_RANDOM / size)))
        best, tokens = (prior + lens.scores(proxies[b, t], torch.zeros_like(b, dtype=torch.bool))).topk(2, -1)
        ids.append(tokens[:, 0])
        leads.append(best[:, 0] - best[:, 1])
    return torch.cat(ids), torch.cat(leads)
