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
from .base import Lens
from .repair import Repair
from .second_look import doubtful, look_again

_ROWS, _CHANGES, _PRIORS = (0.0, 1.0), (0.3, 1.0), (0.0, 0.3, 1.0)
_HARDEST = 256  # positions that weights are measured at: all wrong ones, and the nearest to being wrong
_GROWTH, _ROUND_COST = 4, 4.0  # a further block is so many times as large; a round costs as much as so many candidates
_SIZES = (1, 2, 4, 8, 16, 32)
_SURENESS = tuple(2.0 ** (power / 2) for power in range(-16, 8))
_LOOKED = 2048  # doubtful tokens that a second look is measured at


@torch.no_grad()
def measure_repair(decoder: Decoder, lens: Lens, ids: Tensor, states: Tensor) -> Repair:
    """The best weighting on held-out texts `ids [b, T]` with `states [b, T, D]`."""
    b, T = ids.shape
    if T < 2:
        return Repair()
    device, proxies = ids.device, lens.proxies(states)
    later = torch.zeros(b, dtype=torch.bool, device=device)
    lead = torch.stack(
        [_lead(lens.scores(proxies[:, t], later), ids[:, t]) for t in range(1, T)], 1
    )  # [b, T−1], negative where wrong
    order = lead.flatten().argsort()
    wrong_ones = int((lead < 0).sum())
    count = min(_HARDEST, len(order))
    # all that are wrong and the next hardest, or an even share of the wrong ones where there are many
    chosen = order[torch.linspace(0, max(wrong_ones, count) - 1, count, device=device).round().long()]
    text, position = chosen // (T - 1), chosen % (T - 1) + 1
    # one lane a chosen position, so that positions of one text do not wait for each other
    lanes = Lanes(decoder, count, T)
    slots = torch.arange(count, device=device)
    lanes.target_length[:] = T
    lanes.draft(slots, ids[text])
    lanes.commit(slots, ids[text], position, slots)
    true = ids[text, position]
    row = lens.scores(proxies[text, position], later[:1].expand(count))
    wrong = row.scatter(1, true[:, None], float("-inf")).argmax(-1)
    wrong_state = lanes.fan_out(slots, decoder.embed(wrong[:, None]))[:, 0].float()
    change = lens.change_scores(states[text, position], wrong_state, wrong)
    prior = decoder.log_probs(states[text, position - 1]) if decoder.layer.near_head else None
    best: tuple[float, Repair] | None = None
    for weights in itertools.product(_ROWS, _CHANGES, _PRIORS if prior is not None else (0.0,)):
        scores = weights[0] * row + weights[1] * change
        if prior is not None and weights[2]:
            scores = scores + weights[2] * prior
        scores.scatter_(1, wrong[:, None], float("-inf"))
        ranks = (scores > scores.gather(1, true[:, None])).sum(-1)
        cost, size = min((_cost(ranks, size), size) for size in _SIZES)
        if best is None or cost < best[0]:
            best = cost, Repair(*weights, first_block=size, first=(ranks == 0).float().mean().item())
    assert best is not None
    drafted, leads = lens.best(proxies)
    found = replace(best[1], sureness=_sureness(drafted != ids, leads))
    if not decoder.layer.near_head:
        return found
    looked = text, position = _evenly(*doubtful(found.error(leads)))
    again, leads = look_again(decoder, lens, states, proxies, text, position)
    wrong = again != ids[looked]
    helps = bool(wrong.sum() < (drafted != ids)[looked].sum())
    return replace(found, second_look=_sureness(wrong, leads) if helps else 0.0)


def _sureness(wrong: Tensor, leads: Tensor) -> float:
    """The sureness under which what was seen is most likely: which tokens were wrong, and by what they led."""
    towards = torch.where(wrong, -1.0, 1.0).double() * leads
    loss = {rate: float(torch.nn.functional.softplus(-rate * towards).sum()) for rate in _SURENESS}
    return min(_SURENESS, key=lambda rate: loss[rate])


def _evenly(*rows: Tensor) -> tuple[Tensor, ...]:
    """At most `_LOOKED` of the rows, evenly spread."""
    count = len(rows[0])
    chosen = torch.linspace(0, count - 1, min(count, _LOOKED), device=rows[0].device).round().long()
    return tuple(part[chosen] for part in rows)


def _lead(scores: Tensor, true: Tensor) -> Tensor:
    """How far the right token's score is above the best other one, `[b]`."""
    own = scores.gather(1, true[:, None])
    return (own - scores.scatter(1, true[:, None], float("-inf")).amax(-1, keepdim=True))[:, 0]


def _cost(ranks: Tensor, size: int) -> float:
    """Mean candidates verified until the right one is among them, rounds included, when the first block has `size`."""
    tried, cost, block = 0, torch.zeros(len(ranks)), size
    waiting = torch.ones(len(ranks), dtype=torch.bool)
    while bool(waiting.any()):
        cost[waiting] += block + _ROUND_COST
        tried, block = tried + block, block * _GROWTH
        waiting = ranks.cpu() >= tried
    return cost.mean().item()
