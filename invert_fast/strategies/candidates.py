"""What a lens and the model's own prior say of the tokens of texts: drafts, and candidates where those are wrong.

Of a vocabulary of many thousands a row of scores costs as much as a forward pass. There each position has a short list,
made with the draft, and only when all of it was tried is the whole vocabulary scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.protocol import Context
from ..lens.base import Lens
from ..lens.prior import draft_proxies, draft_scores
from ..lens.second_look import doubtful, look_again
from ..ops.best_two import LISTED, MANY_TOKENS
from .blocks import Ranked


class Candidates:
    """Those of all lanes. listed: whether positions have short lists; width: how many candidates are scored at once."""

    def __init__(self, context: Context, lens: Lens):
        self.context, self.lens, self.repair = context, lens, lens.repair
        lanes, device = context.lanes, context.decoder.device
        self.near_head = context.decoder.layer.near_head
        self.looks_again = self.near_head and self.repair.second_look > 0
        self.listed = context.vocabulary.size >= MANY_TOKENS
        self.width = LISTED if self.listed else context.vocabulary.size
        width = context.vocabulary.embedding.shape[1]
        self.proxies = torch.zeros(lanes.slots, lanes.max_len, width, device=device)
        if self.listed:
            shape = lanes.slots, lanes.max_len, LISTED
            self.lists = torch.full(shape, -1, dtype=torch.int32, device=device)
            self.list_scores = torch.zeros(shape, device=device)

    def draft(self, slots: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that the lens makes of whole texts `hidden [b, T, D]` in these lanes, and how likely each is
        wrong, `[b, T]` each."""
        proxies = draft_proxies(self.context.decoder, self.lens, hidden)
        self.proxies[slots, : hidden.shape[1]] = proxies
        if self.listed:
            ids, scores = draft_scores(self.context.decoder, self.lens, hidden, proxies)
            self.lists[slots, : hidden.shape[1]] = ids.int()
            self.list_scores[slots, : hidden.shape[1]] = scores
            return ids[..., 0], self.repair.error(scores[..., 0] - scores[..., 1])
        drafts, leads = self.lens.best(proxies)
        error = self.repair.error(leads)
        if self.looks_again:
            rows = doubtful(error)
            drafts[rows], leads = look_again(self.context.decoder, self.lens, hidden, proxies, *rows)
            error[rows] = self.repair.error(leads, again=True)
        return drafts, error

    def untried(self, slots: Tensor, position: Tensor) -> Tensor:
        """`[n]` bool: the lists of these positions have a token that was not tried there."""
        ids = self.lists[slots, position].long()
        return ((ids >= 0) & ~self.context.attempts.tried[slots[:, None], ids.clamp_min(0)]).any(-1)

    def ranked(
        self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor, whole: bool = False
    ) -> Ranked:
        """The candidates of n positions in posterior order, weighted as the fit found best. Token `wrong [n]` was seen
        to give `wrong_state [n, D]` there. whole: all tokens, though there are lists."""
        targets, repair, decoder = self.context.lanes.targets, self.repair, self.context.decoder
        if whole and self.listed and bool((position > 0).all()):
            return self._at_once(slots, position, wrong_state, wrong)
        ids = self.lists[slots, position].long() if self.listed and not whole else None
        scores = repair.change * self.lens.change_scores(targets[slots, position], wrong_state, wrong, ids)
        if repair.row:
            row = (
                self.lens.scores(self.proxies[slots, position], position == 0)
                if ids is None
                else self.list_scores[slots, position]
            )
            scores += repair.row * row
        if repair.prior and self.near_head:
            before = targets[slots, (position - 1).clamp_min(0)]
            prior = decoder.log_probs(before) if ids is None else decoder.logits_of(before, ids)
            scores += repair.prior * prior.masked_fill_((position == 0)[:, None], 0.0)
        return Ranked(scores, ids)

    def _at_once(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> Ranked:
        """All tokens, by one product for all that `ranked` adds up: the matrix is read once, not three times."""
        targets, repair, decoder = self.context.lanes.targets, self.repair, self.context.decoder
        proxies, bias = self.lens.change_proxies(targets[slots, position], wrong_state, wrong)
        proxies = repair.change * proxies + repair.row * self.proxies[slots, position]
        bias = repair.change * bias + (repair.row * self.lens.row_bias if repair.row else 0.0)
        prior = repair.prior if self.near_head else 0.0
        before = targets[slots, position - 1]
        if prior and decoder.tied_scale is not None:
            proxies += (prior / decoder.tied_scale) * decoder.head_input(before).float()
        scores = torch.addmm(bias, proxies, self.context.vocabulary.embedding.T)
        if prior and decoder.tied_scale is None:
            scores += prior * decoder.log_probs(before)
        return Ranked(scores)
