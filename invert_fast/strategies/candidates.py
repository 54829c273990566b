"""What a lens and the model's own prior say of the tokens of texts: drafts, and candidates where those are wrong.

Of a vocabulary of many thousands a row of scores costs as much as a forward pass. There each position has a short list,
made with the draft, and the whole vocabulary is scored only when the first few of it were tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.protocol import Context
from ..lens.base import Lens
from ..lens.prior import draft_lists
from ..lens.second_look import doubtful, look_again
from ..ops.best_two import LISTED, MANY_TOKENS
from .blocks import Ranked, in_turn

_LIKELY = 16  # tokens that the prior adds to a list: some states say what comes next, and hardly what they are of
_SCORES_AT_ONCE = 1 << 24
_FROM_ALL = 4096  # of the whole vocabulary, by each order


class Candidates:
    """Those of all lanes. listed: whether positions have short lists; width: how many candidates are scored at once."""

    def __init__(self, context: Context, lens: Lens):
        self.context, self.lens, self.repair = context, lens, lens.repair
        lanes, device = context.lanes, context.decoder.device
        self.near_head = context.decoder.layer.near_head
        self.looks_again = self.near_head and self.repair.second_look > 0
        self.listed = context.vocabulary.size >= MANY_TOKENS
        self.width = LISTED if self.listed else context.vocabulary.size
        self._rows = max(1, _SCORES_AT_ONCE // context.vocabulary.size)
        width = context.vocabulary.embedding.shape[1]
        self.proxies = torch.zeros(lanes.slots, lanes.max_len, width, device=device)
        if self.listed:
            shape = lanes.slots, lanes.max_len, LISTED
            self.lists = torch.full(shape, -1, dtype=torch.int32, device=device)
            self.list_scores = torch.zeros(shape, device=device)

    def draft(self, slots: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that the lens makes of whole texts `hidden [b, T, D]` in these lanes, and how likely each is
        wrong, `[b, T]` each."""
        T = hidden.shape[1]
        if self.listed:
            found = draft_lists(self.context.decoder, self.lens, hidden)
            self.proxies[slots, :T], self.list_scores[slots, :T] = found.proxies, found.scores
            self.lists[slots, :T] = found.ids.int()
            return found.ids[..., 0], found.error
        self.proxies[slots, :T] = proxies = self.lens.proxies(hidden)
        drafts, leads = self.lens.best(proxies)
        error = self.repair.error(leads)
        if self.looks_again:
            rows = doubtful(error)
            drafts[rows], leads = look_again(self.context.decoder, self.lens, hidden, proxies, *rows)
            error[rows] = self.repair.error(leads, self.repair.second_look)
        return drafts, error

    def untried(self, slots: Tensor, position: Tensor) -> Tensor:
        """`[n]` bool: the lists of these positions have a token that was not tried there."""
        ids = self.lists[slots, position].long()
        return ((ids >= 0) & ~self.context.attempts.tried[slots[:, None], ids.clamp_min(0)]).any(-1)

    def ranked(
        self,
        slots: Tensor,
        position: Tensor,
        wrong_state: Tensor,
        wrong: Tensor,
        whole: bool = False,
        tried: bool = False,
    ) -> Ranked:
        """The candidates of n positions in posterior order, weighted as the fit found best. Token `wrong [n]` was seen
        to give `wrong_state [n, D]` there. Where there are lists, candidates are of these, and, once one was
        tried, of those that the prior alone finds likely; whole: of all tokens nevertheless."""
        if self.listed and whole:
            return self._from_all(slots, position, wrong_state, wrong)
        if self.listed:
            return self._from_lists(slots, position, wrong_state, wrong, tried)
        targets, repair = self.context.lanes.targets, self.repair
        scores = repair.change * self.lens.change_scores(targets[slots, position], wrong_state, wrong)
        if repair.row:
            scores += repair.row * self.lens.scores(self.proxies[slots, position], position == 0)
        if repair.prior and self.near_head:
            prior = self.context.decoder.log_probs(targets[slots, (position - 1).clamp_min(0)])
            scores += repair.prior * prior.masked_fill_((position == 0)[:, None], 0.0)
        return Ranked(scores)

    def _from_lists(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor, tried: bool) -> Ranked:
        targets, repair, decoder = self.context.lanes.targets, self.repair, self.context.decoder
        ids, start = self.lists[slots, position].long(), (position == 0)[:, None]
        scores = repair.change * self.lens.change_scores(targets[slots, position], wrong_state, wrong, ids)
        scores += repair.row * self.list_scores[slots, position]
        if not self.near_head:
            return Ranked(scores, ids)
        before = targets[slots, (position - 1).clamp_min(0)]
        if repair.prior:
            scores += repair.prior * decoder.logits_of(before, ids).masked_fill_(start, 0.0)
        if not tried:
            return Ranked(scores, ids)
        order = scores.masked_fill(ids < 0, float("-inf")).argsort(-1, descending=True)
        likely = [
            self._prior(*part).topk(_LIKELY, -1).indices
            for part in zip(*(table.split(self._rows) for table in (slots, position)), strict=True)
        ]
        return in_turn(ids.gather(1, order), torch.cat(likely))

    def _prior(self, slots: Tensor, position: Tensor) -> Tensor:
        """Of all tokens, `[n, V]`; −∞ for what is no candidate, the same for all others at position 0."""
        prior = self.context.decoder.log_probs(self.context.lanes.targets[slots, (position - 1).clamp_min(0)])
        prior.masked_fill_((position == 0)[:, None], 0.0)
        return prior.masked_fill_(~self.context.vocabulary.allowed, float("-inf"))

    def _from_all(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> Ranked:
        """What the fit found best, the prior, and the change with the prior take turns. Each is one product for all
        that its scores add up: the embedding matrix is read once for it."""
        targets, repair, vocabulary = self.context.lanes.targets, self.repair, self.context.vocabulary
        change, fixed = self.lens.change_proxies(targets[slots, position], wrong_state, wrong)
        proxies = repair.change * change + repair.row * self.proxies[slots, position]
        bias = repair.change * fixed + (repair.row * self.lens.row_bias if repair.row else 0.0)
        scores = torch.addmm(bias, proxies, vocabulary.embedding.T)
        if not self.near_head:
            return Ranked(scores)
        prior = self._prior(slots, position)
        both = torch.addmm(fixed, change, vocabulary.embedding.T).add_(prior)
        orders = scores.masked_fill_(~vocabulary.allowed, float("-inf")), prior, both
        best = [part.topk(min(_FROM_ALL, vocabulary.size), -1) for part in orders]
        ranked = in_turn(*(part.indices.masked_fill(part.values == float("-inf"), -1) for part in best))
        left = ranked.untried(self.context, slots).scores > float("-inf")
        return ranked if bool(left.any(-1).all()) else Ranked(scores)  # all of these tried: the rest, in one order
