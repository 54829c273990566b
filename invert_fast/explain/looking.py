"""What is measured at each position of a known text: orders of tokens, and states after the true tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.attempts import Attempts
from ..engine.memory import plan
from ..engine.protocol import Context
from ..engine.tolerances import Tolerances, deviations
from ..lens.base import Lens
from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.own_lanes import lanes_of
from ..model.transfer import sent_one, told, told_one
from ..model.vocabulary import Vocabulary
from ..strategies.candidates import Candidates

_SCORES_AT_ONCE = 1 << 22  # numbers in a table of scores: a few rows of a large vocabulary, never one of all positions


@dataclass(frozen=True)
class Looked:
    """Of T positions. draft `[T]`; lens_rank, prior_rank `[T]`, chance `[T]`: see `Position`, of the prior from
    position 1 on; residual, tolerance, required, bound `[T]`; alone `[T]` bool: no untried token can be as near;
    equals `[T]`: usable tokens with the very row; rivals `[T, C]` and how far their states are, nearest first: −1 and ∞
    for none."""

    draft: list[int]
    lens_rank: list[int]
    prior_rank: list[int]
    chance: list[float]
    residual: list[float]
    tolerance: list[float]
    required: list[float]
    bound: list[float]
    alone: list[bool]
    equals: list[int]
    rivals: list[list[int]]
    away: list[list[float]]


@torch.no_grad()
def look(
    decoder: Decoder,
    vocabulary: Vocabulary,
    tolerances: Tolerances,
    lens: Lens,
    ids: Sequence[int],
    hidden: Tensor,
    also: Sequence[int],
    near: int,
) -> Looked:
    """Of the text `ids`, T > 0 tokens, with captured states `hidden [T, D]`. also `[T]`: tokens that are tried at each
    position anyway; near: how many others."""
    token, lanes = torch.tensor(ids), lanes_of(decoder, 1, len(ids))
    slot = token.new_zeros(1)
    lanes.load(slot, [0], [hidden])
    context = Context(
        *(decoder, vocabulary, tolerances, lanes),
        Attempts(1, vocabulary.size, decoder.width, decoder.device),
    )
    draft = Candidates(context, lens).draft(slot, lanes.targets)[0][0]
    lens_rank, likely = _by_lens(vocabulary, lens, lanes.targets, token, near)
    prior_rank, chance = _by_prior(decoder, lanes.targets[0], token)

    width = plan(decoder, len(ids), None, 1).tokens_per_call
    places = torch.arange(len(ids))
    own = _forced(lanes, slot, token, width)
    residual = told_one(tolerances.row_residuals(own, lanes.targets, places[None])[1][0])
    rivals = _chosen(vocabulary, token, likely, token.new_tensor(also), near)
    parts = places.split(max(1, width // rivals.shape[1]))
    away = torch.cat([_tried(lanes, tolerances, part, rivals[part]) for part in parts])
    away, order = away.sort(dim=-1, stable=True)

    at = tolerances.at(places)
    z = deviations(vocabulary.candidates)
    required, bound = at.required(residual, z), at.bound(vocabulary.separation_of(token), residual)
    columns = (draft, lens_rank, prior_rank, chance, residual, at.tolerance, required, bound, bound > required)
    return Looked(*(c.tolist() for c in (*columns, vocabulary.class_size[token], rivals.gather(1, order), away)))


def _forced(lanes: Lanes, slot: Tensor, token: Tensor, width: int) -> Tensor:
    """States `[1, T, D]` of the text by our pass, which the lane then holds; no more than `width` tokens a call."""
    parts, keep = [], torch.ones(1, dtype=torch.bool)
    for part in token.split(width):
        parts.append(lanes.draft(slot, part[None]))
        lanes.commit(slot, part[None], slot.new_tensor([len(part)]), slot.new_zeros(1), keep=keep)
    return torch.cat(parts, 1)


def _tried(lanes: Lanes, tolerances: Tolerances, places: Tensor, ids: Tensor) -> Tensor:
    """Residuals of the tokens `ids [n, C]` at these places of the text, `[n, C]`; ∞ for none."""
    hidden = lanes.fan_out_at(torch.zeros_like(places), places, ids.clamp_min(0))
    targets = lanes.targets[0, sent_one(lanes.device, places)]
    found = told_one(tolerances.residuals(hidden, targets, places[:, None])[1])
    return found.masked_fill(ids < 0, torch.inf)


def _chosen(vocabulary: Vocabulary, token: Tensor, likely: Tensor, also: Tensor, near: int) -> Tensor:
    """The tokens to try beside each of `token [T]`: `[T, C]`, C from 1 to near + 1, −1 for none. Nearest rows of the
    embedding and what the lens holds likeliest, `likely [T, n]`, take turns; never one of an equal row, nor one
    twice."""
    rows = vocabulary.neighbours.of(token)[0]
    chosen = []
    for one, first, *lists in zip(token.tolist(), also.tolist(), likely.tolist(), rows.tolist(), strict=True):
        seen = {*vocabulary.equals(one), -1}
        fresh = [first] if first not in seen else []
        seen.update(fresh)
        for other in _in_turns(*lists):
            if len(fresh) > near:
                break
            if other not in seen:
                seen.add(other)
                fresh.append(other)
        chosen.append(fresh[: near + (first in fresh)])
    most = max(1, *map(len, chosen))
    return token.new_tensor([some + [-1] * (most - len(some)) for some in chosen])


def _in_turns(*lists: list[int]) -> Iterator[int]:
    for place in range(max(map(len, lists))):
        yield from (each[place] for each in lists if place < len(each))


def _by_lens(vocabulary: Vocabulary, lens: Lens, hidden: Tensor, token: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many tokens the lens holds likelier than each of `token [T]` from states `hidden [1, T, D]`; and the
    likeliest `count` and one, `[T, n]`, −1 for what is no candidate."""
    proxies, own = lens.proxies(hidden)[0], vocabulary.representative[sent_one(hidden.device, token)]
    count = min(count + 1, vocabulary.size)
    ranks, likely = [], []
    for part in _rows(len(token), vocabulary.size, hidden.device):
        scores = lens.scores(proxies[part], part == 0)
        ranks.append(_rank(scores, own[part]))
        best = scores.topk(count, -1)
        likely.append(best.indices.masked_fill(best.values == float("-inf"), -1))
    ranked, listed = told(torch.cat(ranks), torch.cat(likely))
    return ranked, listed


def _by_prior(decoder: Decoder, hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the model's own prior, from position 1 on; and the chance that it gives each token. From the captured
    states, where those are of the last layer, else from a pass of ours through all layers."""
    whole, rows, token = decoder, hidden, sent_one(hidden.device, token)
    if not decoder.layer.near_head:
        whole = decoder.full()
        rows = whole.states(token[None])[0]
    ranks, chances = [token.new_zeros(0)], [hidden.new_zeros(0)]
    for part in _rows(len(token) - 1, decoder.vocab_size, token.device):
        scores = whole.log_probs(rows[part])
        ranks.append(_rank(scores, token[part + 1]))
        chances.append(scores.gather(1, token[part + 1, None])[:, 0].exp())
    ranked, chance = told(torch.cat(ranks), torch.cat(chances))
    return ranked, chance


def _rank(scores: Tensor, token: Tensor) -> Tensor:
    return (scores > scores.gather(1, token[:, None])).sum(-1)


def _rows(count: int, size: int, device: torch.device) -> tuple[Tensor, ...]:
    """The numbers from 0 to `count`, as many at once as tables of `size` columns allow; none of none."""
    every = torch.arange(count, device=device)
    return every.split(max(1, _SCORES_AT_ONCE // size)) if count else ()
