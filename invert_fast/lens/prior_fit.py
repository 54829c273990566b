"""Measuring, on held-out texts of every kind, how much of the model's own prior drafts of a large vocabulary want, and
how far down their orders of candidates the right ones are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.transfer import told
from .base import Lens
from .linear import LinearLens
from .measure import SIZES, cost, evenly, sureness
from .orders import orders, ranked_ids, take_turns
from .prior import Drafted, DraftPrior, draft_lists, weighed_lists
from .repair import GROWTH_OF_LARGE, Repair

_WEIGHTS, _TRIED = (6.0, 4.0, 2.0, 1.0, 0.5, 0.0), 2.0  # and under which lists are made to try them
_KINDS, _BINS = 3, 12  # so many weights at most; where they may part, in shares of the tokens
_WRONG, _DEEP, _HOPELESS = 96, 1024, 128  # positions whose candidates are ordered; how many by each; what is too deep
_WRONG_ENOUGH = 0.02  # share of tokens that a lens drafts wrong
_ROWS, _ROWS_AT_ONCE, _RIDGE = 320, 16, 0.1  # that are asked for all their logits


@torch.no_grad()
def fit_prior(decoder: Decoder, lens: LinearLens, ids: Tensor, states: Tensor) -> Drafted:
    """Give a lens of a large vocabulary its `DraftPrior`, from held-out texts `ids [b, T]` with `states [b, T, D]`, and
    what its lists are found by. Returns the drafts of these texts."""
    metric, ends = lens.parts["rest"].gram, decoder.ends(states) if ids.shape[1] > 1 else None
    if ends is None or not _wanted(decoder, lens, ids, states):
        lens.list_by(metric)
        return weighed_lists(decoder, lens, states, 0.0, None)
    if decoder.tied_scale is not None:  # else the prior is no part of what lists are found by
        added = (_TRIED / decoder.tied_scale) * decoder.head_input(ends[:, :-1]).float().flatten(0, 1)
        metric = metric + torch.cov(added.T)
    lens.list_by(metric)
    tried = weighed_lists(decoder, lens, states, _TRIED, ends)
    asked = DraftPrior(_normaliser(decoder, ends))
    before, tokens = ends[:, :-1].flatten(0, 1), tried.ids[:, 1:].flatten(0, 1)
    prior = decoder.logits_of(before, tokens).view(*ids[:, 1:].shape, -1)
    right, surprise, leads = [], [], []
    for weight in _WEIGHTS:
        two, best = (tried.scores[:, 1:] + (weight - _TRIED) * prior).topk(2, -1)
        draft = torch.cat([tried.ids[:, :1, 0], tried.ids[:, 1:].gather(-1, best[..., :1])[..., 0]], 1)
        right.append((draft == ids)[:, 1:].flatten())
        leads.append((two[..., 0] - two[..., 1]).flatten())
        surprise.append(asked.surprise(decoder, ends, draft).flatten())
    found = [_parted(torch.stack(right[i:]), surprise[i]) for i in range(len(_WEIGHTS))]
    most = max(range(len(found)), key=lambda i: found[i][0])
    _, edges, chosen = found[most]
    kind = torch.bucketize(surprise[most], surprise[most].new_tensor(edges))
    known = [
        sureness(~right[most + w][kind == k], leads[most + w][kind == k]) if bool((kind == k).any()) else 0.5
        for k, w in enumerate(chosen)
    ]
    lens.prior = DraftPrior(asked.normaliser, tuple(_WEIGHTS[most + w] for w in chosen), edges, tuple(known))
    return draft_lists(decoder, lens, states)


def _wanted(decoder: Decoder, lens: LinearLens, ids: Tensor, states: Tensor) -> bool:
    """Whether drafts should ask the prior: always where it is free. Elsewhere it costs a part of a pass, which texts
    that the lens drafts right do without: there it is asked where a draft was wrong."""
    if decoder.layer.near_head:
        return True
    wrong = lens.best(lens.proxies(states))[0] != ids
    return float(wrong[:, 1:].float().mean()) > _WRONG_ENOUGH


@torch.no_grad()
def measure_orders(decoder: Decoder, lens: Lens, ids: Tensor, states: Tensor, lanes: Lanes, drafted: Drafted) -> Repair:
    """As `measure_repair`, where candidates are tried in the turns of `orders`. lanes: where these texts are kept, one
    each."""
    draft, leads = drafted.ids[..., 0], drafted.leads
    found = Repair(change=1.0, row=1.0, prior=0.0, sureness=sureness(draft != ids, leads))
    text, position = (draft != ids)[:, 1:].nonzero(as_tuple=True)
    if not len(text):
        return found
    text, position = evenly(text, position + 1, most=_WRONG)
    true, wrong, ends = ids[text, position], draft[text, position], drafted.ends
    assert ends is not None, "a lens with a prior asks for it"
    lane, place = told(text, position)
    seen = lanes.fan_out_at(lane, place, wrong[:, None])[:, 0].float()
    ranks = []
    for part in torch.arange(len(text), device=ids.device).split(_ROWS_AT_ONCE):
        at = text[part], position[part]
        row = lens.scores(drafted.proxies[at], torch.zeros_like(part, dtype=torch.bool))
        prior = decoder.log_probs(ends[at[0], at[1] - 1])
        change = lens.change_scores(states[at], seen[part], wrong[part])
        tables = orders(row, prior, change, drafted.weight[at])
        banned = ~lens.vocabulary.allowed | (prior == float("-inf"))
        banned.scatter_(1, wrong[part][:, None], True)
        tokens, turns = take_turns(*(ranked_ids(t.masked_fill(banned, float("-inf")), _DEEP) for t in tables))
        here = turns.masked_fill(tokens != true[part][:, None], float("-inf")).amax(-1, keepdim=True)
        ranks.append((turns > here).sum(-1))
    rank = torch.cat(ranks)
    first = (rank == 0).float().mean().item()
    if bool((rank < _HOPELESS).any()):  # what no order names early says nothing of how many to try at first
        rank = rank[rank < _HOPELESS]
    return replace(found, first_block=min((cost(rank, size, GROWTH_OF_LARGE), size) for size in SIZES)[1], first=first)


def _parted(right: Tensor, surprise: Tensor) -> tuple[int, tuple[float, ...], tuple[int, ...]]:
    """The most tokens drafted right by weights that do not grow with surprise, the first of them where it is least:
    right `[weights, n]` bool, surprise `[n]` → how many, where they part, which weights. They part half-way between
    the tokens on either side: texts of other kinds lie there."""
    order = surprise.argsort()
    at = (torch.arange(1, _BINS) * len(order) // _BINS).tolist()
    sums = torch.cat([right.new_zeros(len(right), 1, dtype=torch.long), right[:, order].cumsum(1)], 1)
    sums = sums[:, [0, *at, len(order)]].cpu()
    best = int(sums[0, -1]), (), (0,)
    bounds = range(1, len(at) + 1)
    for count in range(1, _KINDS):
        for parts in itertools.combinations(bounds, count):
            ends, chosen, total = (*parts, len(at) + 1), [0], int(sums[0, parts[0]])
            for start, end in itertools.pairwise(ends):
                gained = sums[chosen[-1] :, end] - sums[chosen[-1] :, start]
                chosen.append(chosen[-1] + int(gained.argmax()))
                total += int(gained.max())
            if total > best[0]:
                best = total, parts, tuple(chosen)
    total, parts, chosen = best
    means = [float(surprise[part].mean()) for part in order.tensor_split([at[part - 1] for part in parts])]
    return total, tuple((here + there) / 2 for here, there in itertools.pairwise(means)), chosen


def _normaliser(decoder: Decoder, ends: Tensor) -> Tensor:
    """`[D + 1]`: a ridge regression of log Σ exp of all logits on what the head takes."""
    rows = decoder.head_input(ends.flatten(0, 1))
    rows = rows[torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).long().to(rows.device)]
    whole = torch.cat([decoder.log_normaliser(part) for part in rows.split(_ROWS_AT_ONCE)]).double()
    x = rows.double()
    mean, away = x.mean(0), x - x.mean(0)
    power = away.T @ away
    power.diagonal().add_(_RIDGE * float(power.diagonal().mean()) + 1e-30)
    slope = torch.linalg.solve(power, away.T @ (whole - whole.mean()))
    return torch.cat([slope, (whole.mean() - mean @ slope)[None]]).float()
