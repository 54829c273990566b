"""The model's own next-token prior in the drafts of a large vocabulary, free at the last layer: the state before a row
gives it. At an inner layer the blocks behind it do, run from the states of the text (`model/onward.py`).

A lens takes what a context adds to a state for Gaussian noise, which it is not: its scores exaggerate, and drafts are
best with several times the prior. But for what the model would never write, passwords or keys, the prior only misleads.
So a text is drafted as if it were natural; where that draft surprises the model, its rows are drafted again with less.
A learned lens has seen what natural texts look like, and says for each row how much of it to take.

Where the head is the embedding matrix, as in many models of many tokens, a logit is a product with a token's row, as
is the score of a lens: the prior is added to the proxies, and costs nothing. Where it is not, the tokens that it finds
likeliest join the short lists, and it is asked for the tokens of these alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import Decoder
from .base import Lens, WeighingLens
from .opening import begin_as_usual

_AROUND = 8  # tokens on either side whose surprise counts at a position
_LIKELY, _ROWS_AT_ONCE = 16, 128  # tokens that the model names for a list; rows of logits of all tokens at once


@dataclass(frozen=True)
class DraftPrior:
    """How much of the prior joins a draft, measured when the lens was fitted.

    weights: of the prior, most first; edges: nats a token by which a draft with the first weight may surprise the model
    where the first of them is best, the second, …, one less; sureness: as in `Repair`, of drafts with each weight;
    normaliser `[D + 1]`: log Σ exp of all logits, near enough, as a product with [what the head takes; 1].
    """

    normaliser: Tensor
    weights: tuple[float, ...] = (0.0,)
    edges: tuple[float, ...] = ()
    sureness: tuple[float, ...] = (0.5,)

    def __post_init__(self):
        if not len(self.weights) == len(self.edges) + 1 == len(self.sureness):
            raise ValueError(f"{len(self.weights)} weights, {len(self.edges)} edges, {len(self.sureness)} of sureness")

    def surprise(self, decoder: Decoder, ends: Tensor, ids: Tensor) -> Tensor:
        """Nats a token by which the draft `ids [b, T]` of states that have these `Decoder.ends [b, T, D]` surprises the
        model, around each position but the first: `[b, T − 1]`."""
        before, tokens = ends[:, :-1], ids[:, 1:]
        logits = decoder.logits_of(before.flatten(0, 1), tokens.reshape(-1, 1)).view_as(tokens)
        whole = decoder.head_input(before).float() @ self.normaliser[:-1] + self.normaliser[-1]
        return around((whole - logits).nan_to_num(0.0, 0.0, 0.0))

    def kind(self, surprise: Tensor) -> Tensor:
        """Which of the weights is best there: indices, of the shape of `surprise`."""
        return torch.bucketize(surprise, surprise.new_tensor(self.edges))


@dataclass
class Drafted:
    """The short lists of whole texts: proxies `[b, T, D_e]` of the lens alone; ids, scores `[b, T, LISTED]`, best
    first, see `BestTwo.shortlist`, with the prior at `weight [b, T]`; error `[b, T]`: how likely each first one is
    wrong; ends `[b, T, D]`: `Decoder.ends` of the states, where they were asked for."""

    proxies: Tensor
    ids: Tensor
    scores: Tensor
    error: Tensor
    weight: Tensor
    ends: Tensor | None = None

    @property
    def leads(self) -> Tensor:
        """By what each first token leads the second, `[b, T]`."""
        return _leads(self.scores)


@torch.no_grad()
def draft_lists(decoder: Decoder, lens: Lens, hidden: Tensor) -> Drafted:
    """Of states of whole texts `[b, T, D]`."""
    found = _drafted(decoder, lens, hidden)
    if hidden.shape[1]:
        begin_as_usual(decoder, hidden[:, 0], found.ids[:, 0], found.scores[:, 0], found.error[:, 0])
    return found


def _drafted(decoder: Decoder, lens: Lens, hidden: Tensor) -> Drafted:
    asked = lens.prior is not None or (isinstance(lens, WeighingLens) and lens.weighs)
    ends = decoder.ends(hidden) if asked and hidden.shape[1] > 1 else None
    if isinstance(lens, WeighingLens) and lens.weighs:
        proxies, weights = lens.weighed_proxies(hidden)
        return _lists(decoder, lens, ends, proxies, weights)
    found = weighed_lists(decoder, lens, hidden, 0.0 if lens.prior is None else lens.prior.weights[0], ends)
    if lens.prior is None or ends is None:
        return found
    surprise = lens.prior.surprise(decoder, ends, found.ids[..., 0])
    kind = lens.prior.kind(surprise)
    weights, sureness = (surprise.new_tensor(of)[kind] for of in (lens.prior.weights, lens.prior.sureness))
    _weigh_again(decoder, lens, ends, found, weights)
    found.error[:, 1:] = lens.repair.error(found.leads[:, 1:], sureness)
    return found


@torch.no_grad()
def weighed_lists(decoder: Decoder, lens: Lens, hidden: Tensor, weight: float, ends: Tensor | None) -> Drafted:
    """With `weight` times the prior everywhere, where the texts' `Decoder.ends` tell it."""
    weights = torch.full(hidden.shape[:2], 0.0 if ends is None else weight, device=hidden.device)
    weights[:, :1] = 0.0
    return _lists(decoder, lens, ends if weight > 0 else None, lens.proxies(hidden), weights, ends)


def _lists(
    decoder: Decoder, lens: Lens, joined: Tensor | None, proxies: Tensor, weights: Tensor, ends: Tensor | None = None
) -> Drafted:
    """joined: the ends whose prior joins the scores."""
    together, tied, weight = proxies, decoder.tied_scale, weights[:, 1:, None]
    if joined is not None and tied is not None:
        together = proxies.clone()
        together[:, 1:] += (weight / tied) * decoder.head_input(joined[:, :-1]).float()
    ids, scores = lens.lists(together)
    if joined is not None and tied is None:
        ids[:, 1:], scores[:, 1:] = _with_likely(
            decoder, lens, joined[:, :-1], proxies[:, 1:], ids[:, 1:], scores[:, 1:]
        )
        ids[:, 1:], scores[:, 1:] = _add_prior(decoder, joined[:, :-1], ids[:, 1:], scores[:, 1:], weight)
    error = lens.repair.error(_leads(scores))
    return Drafted(proxies, ids, scores, error, weights, joined if ends is None else ends)


def _weigh_again(decoder: Decoder, lens: Lens, ends: Tensor, found: Drafted, weights: Tensor) -> None:
    """Make the rows of `found` anew whose weight `[b, T − 1]` is another than it is now."""
    text, row = (weights != found.weight[:, 1:]).nonzero(as_tuple=True)
    if not len(text):
        return
    at, before, weight = (text, row + 1), ends[text, row], weights[text, row][:, None]
    if decoder.tied_scale is None:
        more = weight - found.weight[at][:, None]
        found.ids[at], found.scores[at] = _add_prior(decoder, before, found.ids[at], found.scores[at], more)
    else:
        together = found.proxies[at] + (weight / decoder.tied_scale) * decoder.head_input(before).float()
        found.ids[at], found.scores[at] = lens.row_lists(together)
    found.weight[at] = weight[:, 0]


def _add_prior(decoder: Decoder, before: Tensor, ids: Tensor, scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    prior = decoder.logits_of(before.flatten(0, -2), ids.flatten(0, -2)).view_as(scores)
    scores, order = (scores + weight * prior.masked_fill(ids < 0, 0.0)).sort(-1, descending=True)
    return ids.gather(-1, order), scores


def _with_likely(
    decoder: Decoder, lens: Lens, before: Tensor, proxies: Tensor, ids: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Lists `[b, T, LISTED]` into which the tokens have come that the model finds likeliest behind `before [b, T, D]`,
    in place of the last: what a lens reads badly is often what a text had to go on with."""
    found_ids, found_scores = [], []
    flat = (table.flatten(0, 1).split(_ROWS_AT_ONCE) for table in (before, proxies, ids, scores))
    for rows, proxy, listed, had in zip(*flat, strict=True):
        likely = decoder.log_probs(rows).topk(_LIKELY, -1).indices
        new = lens.vocabulary.embedding.scores_of(proxy, likely) + lens.row_bias[likely]
        same = likely[:, :, None] == listed[:, None]
        none = same.any(-1) | (new == -torch.inf)  # listed already, or no candidate
        both, at = torch.cat([listed, likely.masked_fill(none, -1)], 1), torch.cat([had, new], 1)
        key = torch.cat([had.masked_fill(same.any(1), torch.inf), torch.where(none, -torch.inf, torch.inf)], 1)
        first = key.topk(listed.shape[1], -1).indices
        found_ids.append(both.gather(1, first))
        found_scores.append(at.masked_fill(both < 0, -torch.inf).gather(1, first))
    return torch.cat(found_ids).view_as(ids), torch.cat(found_scores).view_as(scores)


def _leads(scores: Tensor) -> Tensor:
    return scores[..., 0] - scores[..., 1]


def around(surprise: Tensor) -> Tensor:
    """The mean over the tokens near each, `[b, n]`."""
    if not surprise.numel():
        return surprise
    width = 2 * _AROUND + 1
    return F.avg_pool1d(surprise[:, None], width, stride=1, padding=_AROUND, count_include_pad=False)[:, 0]
