"""Texts that the model writes itself, sampled through lanes, from openings that are given.

A whole vocabulary is scored for every token only while it is small. Of a large one the model chooses among the tokens
that it finds likely somewhere in the prose that we have: what it writes is as natural, at a fraction of the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.own_lanes import lanes_of
from ..model.transfer import sent_one, told_one
from ..model.vocabulary import Vocabulary

SMALL = 16_384  # tokens of which all are scored
_ASKED, _LIKELY, _ROWS = 384, 32, 64  # rows of states that are asked for their likeliest tokens; rows at once


@torch.no_grad()
def likely_tokens(decoder: Decoder, vocabulary: Vocabulary, texts: Tensor, asked: int | None = None) -> Tensor | None:
    """The tokens `[n]` to write in: those of `texts [b, T]` and those that the model finds likely there; None: all.
    asked: of how many rows of states (384)."""
    asked = asked or _ASKED
    if vocabulary.size <= SMALL:
        return None
    full = decoder.full()
    texts = texts[: -(-2 * asked // max(1, texts.shape[1]))]
    states = full.states(texts).flatten(0, 1)
    states = states[torch.linspace(0, len(states) - 1, min(asked, len(states))).long().to(states.device)]
    found = [full.log_probs(part).topk(_LIKELY, -1).indices.flatten() for part in states.split(_ROWS)]
    tokens = torch.cat([texts.flatten(), *found]).unique()
    return tokens[vocabulary.usable[tokens]]


@torch.no_grad()
def write(
    decoder: Decoder, starts: Tensor, length: int, tokens: Tensor | None, generator: torch.Generator, bar: tqdm
) -> Tensor:
    """Sample on from `starts [b, k]` to `[b, length]` ids, choosing among `tokens`. Deterministic."""
    full, (count, begun) = decoder.full(), starts.shape
    lanes = lanes_of(full, count, length)
    lanes.target_length[:] = length
    slots, choices = torch.arange(count), None if tokens is None else told_one(tokens)
    part = told_one(starts)
    texts = [part]
    while begun < length:
        chances = full.log_probs(lanes.draft(slots, part)[:, -1], tokens).exp().cpu()
        lanes.commit(slots, part, torch.full_like(slots, part.shape[1]), slots)
        bar.update(part.numel())
        chosen = torch.multinomial(chances.nan_to_num_(0.0).clamp_min_(1e-30), 1, generator=generator)
        part = chosen if choices is None else choices[chosen]
        texts.append(part)
        begun += 1
    return sent_one(starts.device, torch.cat(texts, 1))
