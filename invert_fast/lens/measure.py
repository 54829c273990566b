"""How a lens best orders candidates where its first choice was wrong: weights and block size, measured, not guessed.

Three scores tell the right token from the rest, and none is best everywhere: the lens's own (row), the change lens's
(change: the state of the wrong token in this very context is known by then), the model's next-token log-probability
(prior: sharp on prose, misleading on passwords). At every position of held-out texts that the lens gets wrong, or
nearly, the right token's rank is measured under each of a few weightings.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.own_lanes import lanes_of
from ..model.transfer import told
from .base import Lens
from .repair import GROWTH, Repair
from .second_look import doubtful, look_again

_ROWS, _CHANGES, _PRIORS = (0.0, 1.0), (0.3, 1.0), (0.0, 0.3, 1.0)
_HARDEST = 256  # positions that weights are measured at: all wrong ones, and the nearest to being wrong
_ROUND_COST = 4.0  # a round costs as much as so many candidates
SIZES = (1, 2, 4, 8, 16, 32)
_SURENESS = tuple(2.0 ** (power / 2) for power in range(-16, 8))
_LOOKED = 2048  # doubtful tokens that a second look is measured at
_SCORES_AT_ONCE, _SCORES_IN_ALL, _FEWEST = 1 << 21, 1 << 25, 96  # of a whole vocabulary; positions at least


@torch.no_grad()
def measure_repair(
    decoder: Decoder,
    lens: Lens,
    ids: Tensor,
    states: Tensor,
    lanes: Lanes | None = None,
    drafted: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Repair:
    """The best weighting on held-out texts `ids [b, T]` with `states [b, T, D]`.

    lanes: where these texts are kept, one each, if they are; drafted: their proxies, best tokens and leads, if known.
    A few million scores are looked at at once, and fewer positions of a vocabulary that is large.
    """
    if ids.shape[1] < 2:
        return Repair()
    if drafted is None:
        proxies = lens.proxies(states)
        drafted = proxies, *lens.best(proxies)
    proxies, best, leads = drafted
    text, position = _hardest(lens, ids, proxies, best, leads)
    if lanes is None:
        lanes = _kept(decoder, ids)
    near_head = decoder.layer.near_head
    options = [*itertools.product(_ROWS, _CHANGES, _PRIORS if near_head else (0.0,))]
    ranks: list[list[Tensor]] = [[] for _ in options]
    rows = max(1, _SCORES_AT_ONCE // lens.vocabulary.size)
    later = torch.zeros_like(position, dtype=torch.bool)
    chosen = (ids[text, position], proxies[text, position], later, states[text, position], states[text, position - 1])
    wrong = torch.cat(
        [
            lens.scores(*part).scatter_(1, true[:, None], float("-inf")).argmax(-1)
            for true, *part in zip(*(table.split(rows) for table in chosen[:3]), strict=True)
        ]
    )
    lane, place = told(text, position)
    wrong_states = lanes.fan_out_at(lane, place, wrong[:, None])[:, 0].float()
    parts = zip(*(table.split(rows) for table in (*chosen, wrong, wrong_states)), strict=True)
    for true, proxy, never, state, before, other, other_state in parts:
        row = lens.scores(proxy, never)
        change = lens.change_scores(state, other_state, other)
        prior = decoder.log_probs(before) if near_head else None
        for found, weights in zip(ranks, options, strict=True):
            scores = weights[0] * row + weights[1] * change
            if prior is not None and weights[2]:
                scores = scores + weights[2] * prior
            scores.scatter_(1, other[:, None], float("-inf"))
            found.append((scores > scores.gather(1, true[:, None])).sum(-1))
    costs = [min((cost(torch.cat(found), size), size) for size in SIZES) for found in ranks]
    cheapest = min(range(len(options)), key=lambda option: costs[option][0])
    first = (torch.cat(ranks[cheapest]) == 0).float().mean().item()
    found = Repair(
        *options[cheapest],
        first_block=costs[cheapest][1],
        first=first,
        sureness=sureness(best != ids, leads),
    )
    if not near_head or lens.prior is not None:
        return found
    looked = text, position = evenly(*doubtful(found.error(leads)), most=_most(_LOOKED, lens.vocabulary.size))
    again, leads = look_again(decoder, lens, states, proxies, text, position)
    wrong = again != ids[looked]
    helps = bool(wrong.sum() < (best != ids)[looked].sum())
    return replace(found, second_look=sureness(wrong, leads) if helps else 0.0)


def _hardest(lens: Lens, ids: Tensor, proxies: Tensor, best: Tensor, leads: Tensor) -> tuple[Tensor, Tensor]:
    """Texts and positions, `[n]` each: all that the lens gets wrong and the next hardest, or an even share of the wrong
    ones where there are many. Position 0 is another matter."""
    text, position = (best != ids)[:, 1:].nonzero(as_tuple=True)
    lead = leads[:, 1:].clone()
    rows = max(1, _SCORES_AT_ONCE // lens.vocabulary.size)
    for text_part, part in zip(text.split(rows), position.split(rows), strict=True):
        scores = lens.scores(proxies[text_part, part + 1], torch.zeros_like(part, dtype=torch.bool))
        lead[text_part, part] = scores.gather(1, ids[text_part, part + 1][:, None])[:, 0] - scores.amax(-1)
    count = min(_most(_HARDEST, lens.vocabulary.size), lead.numel())
    last = max(len(text), count) - 1
    chosen = lead.flatten().argsort()[torch.linspace(0, last, count, device=ids.device).round().long()]
    return chosen // lead.shape[1], chosen % lead.shape[1] + 1


def _kept(decoder: Decoder, ids: Tensor) -> Lanes:
    """Lanes that hold these texts, one each."""
    lanes = lanes_of(decoder, *ids.shape)
    lanes.target_length[:] = ids.shape[1]
    slots, whole = torch.arange(len(ids)), torch.full((len(ids),), ids.shape[1])
    lanes.draft(slots, ids)
    lanes.commit(slots, ids, whole, slots, keep=torch.ones_like(slots, dtype=torch.bool))
    return lanes


def _most(count: int, size: int) -> int:
    """How many positions are worth scoring in full, of `count` where the vocabulary is small."""
    return max(_FEWEST, min(count, _SCORES_IN_ALL // size))


@torch.no_grad()
def accuracy(lens: Lens, ids: Tensor, states: Tensor) -> tuple[float, float]:
    """top-1 and top-16 over all positions but the first."""
    if ids.shape[1] < 2:
        return 1.0, 1.0
    first, later, tokens = 0.0, 0.0, ids[:, 1:].numel()
    none = torch.zeros(1, dtype=torch.bool, device=ids.device)
    for part, rows in zip(ids.split(32), states.split(32), strict=True):
        right = part[:, 1:].flatten()
        scores = lens.scores(lens.proxies(rows)[:, 1:].flatten(0, 1), none.expand(len(right)))
        ahead = (scores > scores.gather(1, right[:, None])).sum(-1)
        first, later = first + float((ahead == 0).sum()), later + float((ahead < 16).sum())
    return first / tokens, later / tokens


def sureness(wrong: Tensor, leads: Tensor) -> float:
    """The sureness under which what was seen is most likely: which tokens were wrong, and by what they led."""
    towards = torch.where(wrong, -1.0, 1.0).double() * leads
    loss = {rate: float(torch.nn.functional.softplus(-rate * towards).sum()) for rate in _SURENESS}
    return min(_SURENESS, key=lambda rate: loss[rate])


def evenly(*rows: Tensor, most: int) -> tuple[Tensor, ...]:
    """At most so many of the rows, evenly spread."""
    count = len(rows[0])
    chosen = torch.linspace(0, count - 1, min(count, most), device=rows[0].device).round().long()
    return tuple(part[chosen] for part in rows)


def cost(ranks: Tensor, size: int, growth: int = GROWTH) -> float:
    """Mean candidates verified until the right one is among them, rounds included, when the first block has `size`."""
    tried, cost, block = 0, torch.zeros(len(ranks)), size
    waiting = torch.ones(len(ranks), dtype=torch.bool)
    while bool(waiting.any()):
        cost[waiting] += block + _ROUND_COST
        tried, block = tried + block, block * growth
        waiting = ranks.cpu() >= tried
    return cost.mean().item()
