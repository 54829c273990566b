"""The search behind `Beam`: whole texts by likelihood and prior, several hypotheses of each side by side.

A hypothesis is a beginning x_1…x_t of a text with the log of its share of the posterior,

    log p(x_1…x_t | h_1…h_t) = Σ log p(h_i | f(x_1…x_i)) + Σ log p(x_i | x_1…x_{i−1}) + constant,

the density of the noise plus the model's own next-token probability. Each is a lane with keys and values of its own.
A step tries the token that the lens drafted, expects of all others what `lens/change.py` expects of them, and tries
those that this leaves in question; then the best `width` of all texts' continuations go on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engine.protocol import Context
from ..model.branch import begin, branch
from ..model.own_lanes import lanes_of
from ..model.transfer import picked, sent, sent_one, told, told_one
from .continuations import Continuations
from .found import Found, columns_of, leading, once, shares_of
from .hypotheses import UNTRIED, Hypotheses, Marginals

if TYPE_CHECKING:
    from .beam import Beam, Given

_LOOKS = 4  # times that a position is looked at anew, from what fits best by then
_FIRST = 8  # tokens that are tried at the first look: mostly the right one is among them; four times as many at each
_LOUD = 1.5, 2.0, 3.0  # deviations of the best residual, above which tokens are tried at the first looks, and later
_LOST = 2  # positions of a text at which nothing fitted: what is behind them is tried by its share alone
_NONE = float("-inf")


class Search:
    """Texts in the lanes `slots [B]` of the engine, from their committed tokens on. drafts `[B, M]`: of the lens; done
    `[B]`: which are complete; lists `[B, M, L]`: of a large vocabulary, what the lens holds likeliest. Hypothesis w of
    text b is lane bW + w. Lanes, texts, positions and weights are on the host; states, and what is known of all tokens,
    beside the model."""

    def __init__(
        self, settings: Beam, context: Context, slots: Tensor, drafts: Tensor, given: Given, lists: Tensor | None = None
    ):
        self.settings, self.context, self.slots, self.drafts, self.lists = settings, context, slots, drafts, lists
        self.given, self.noise, self.change, self.openings = given, given.noise, given.change, given.openings
        lanes, decoder = context.lanes, context.decoder
        B, W = len(slots), settings.width
        self.lanes = lanes_of(decoder, B * W, lanes.max_len)
        self.lanes.target_length[:] = lanes.target_length[slots].repeat_interleave(W)
        self.hypotheses = Hypotheses(B, W, lanes.max_len)
        self.start, self.lost = lanes.length[slots], torch.zeros(B, dtype=torch.long)
        self.state = torch.zeros(B * W, decoder.width, device=decoder.device)
        self.prior = Continuations(context, self.lanes, self.state)
        self._charged = self.lanes.forward_tokens.clone()
        firsts = torch.arange(B) * W
        longest = int(self.start.max())
        ids = lanes.ids[slots, :longest]
        self.state[sent_one(decoder.device, firsts)] = begin(self.lanes, firsts, ids, self.start)
        self.prior.begin(firsts, ids, self.start)
        self._charge()

    @property
    def length(self) -> Tensor:
        """Of the hypotheses of each text, `[B]`."""
        return self.lanes.length[:: self.settings.width]

    @property
    def done(self) -> Tensor:
        return self.length >= self.context.lanes.target_length[self.slots]

    def step(self) -> None:
        """Every text that is not done goes on by a token."""
        W, hypotheses = self.settings.width, self.hypotheses
        alive = (hypotheses.weight > _NONE) & ~self.done[:, None]
        rows = alive.flatten().nonzero().flatten()  # lanes; text: of each; at: the position of each
        if not len(rows):
            return
        at = self.lanes.length[rows]
        opening = bool((at == 0).any()) and self.openings is not None
        rows = rows[at == 0] if opening else rows
        text, at = rows // W, self.lanes.length[rows]
        target = picked(self.context.lanes.targets, self.slots[text], at)
        weight = sent_one(target.device, hypotheses.weight.flatten()[rows])
        expected = weight[:, None] + self.prior.log(rows, self.settings.prior)
        if opening:
            found, pending = self._opened(target, expected), False
        else:
            found, pending = self._tried(rows, text, at, target, expected)
        self._go_on(rows, text, found, pending)
        self._charge()

    def _opened(self, target: Tensor, expected: Tensor) -> Found:
        """First tokens: the states of all of them are known, whatever the text."""
        assert self.openings is not None
        joint = torch.stack(
            [own + self.noise.log_density(row, self.openings) for own, row in zip(expected, target, strict=True)]
        )
        value, ids = joint.topk(min(self.settings.candidates, joint.shape[1]), -1)
        rest = joint.scatter(1, ids, _NONE).logsumexp(-1)
        return Found(ids, value, self.openings[ids], rest)

    def _tried(self, rows: Tensor, text: Tensor, at: Tensor, target: Tensor, expected: Tensor) -> tuple[Found, bool]:
        """Continuations of lanes `rows [n]`; expected `[n, V]`: their log shares before their states are looked at."""
        settings, n = self.settings, len(rows)
        token, there = sent(target.device, self.drafts[text, at], text)
        every, ids = expected, self._listed(text, at, token, expected)
        expected = expected if ids is None else shares_of(every, ids)
        searched = sent_one(target.device, self.lost[text] < _LOST)
        state = self.lanes.draft(rows, token[:, None])[:, 0].float()
        own = self._column(ids, token)
        joint = expected.gather(1, own) + self.noise.log_density(target, state)[:, None]
        tried = torch.zeros_like(expected, dtype=torch.bool).scatter_(1, own, True)
        found = Found(token[:, None], joint, state[:, None], expected.new_zeros(n))
        pending = True
        for look in range(_LOOKS):
            best, base = self._best(found, target)
            guess = self.change.log_density(target - base, best, self.noise.deviation(base), ids)
            guess = (guess + expected).masked_fill_(tried, _NONE)
            found.untried = guess.logsumexp(-1)
            total = self._total(there, torch.cat([found.joint, found.untried[:, None]], 1))
            value, column = guess.topk(min(_FIRST << 2 * look, settings.candidates, guess.shape[1]), -1)
            asked = value > total[there][:, None] + math.log(settings.worth)
            loud = self.noise.loudness(target, base) > _LOUD[min(look, 2)]  # then none of these may be the right one
            asked |= (loud & searched)[:, None] & (value > _NONE)
            if not bool(asked.any()) or look == _LOOKS - 1:
                break
            self._try(rows, target, ids, expected, column.masked_fill(~asked, UNTRIED), tried, found)
            pending = False
        if ids is not None and self._beyond(rows, text, target, every, ids, found):
            pending = False
        return found, pending

    def _beyond(self, rows: Tensor, text: Tensor, target: Tensor, every: Tensor, ids: Tensor, found: Found) -> bool:
        """Where nothing that was listed fits the best hypothesis of a text: as many of all other tokens, by what the
        best of those tried tells of them, and by the prior. Whether any were tried."""
        weight = self.hypotheses.weight
        leads = (weight == weight.amax(-1, keepdim=True)).flatten()[rows] & (self.lost[text] < _LOST)
        if not bool(leads.any()):
            return False
        token, base = self._best(found, target)
        loud = told_one(self.noise.loudness(target, base) > _LOUD[-1])
        some = (leads & loud).nonzero().flatten()
        if not len(some):
            return False
        at = sent_one(target.device, some)
        scores = self.given.lens.change_scores(target[at], base[at], token[at]).log_softmax(-1)
        scores = torch.cat([scores, scores + every[at]], 0)
        listed = torch.where(ids < 0, ids[:, :1], ids)[at]
        scores.scatter_(1, torch.cat([listed, listed]), _NONE)
        value, found_ids = scores.topk(min(self.settings.listed // 2, scores.shape[1]), -1)
        by_state, by_both = found_ids.masked_fill(value == _NONE, UNTRIED).chunk(2)
        more = torch.full((len(rows), 2 * by_state.shape[1]), UNTRIED, device=ids.device)
        more[at] = leading(once(torch.cat([by_both, by_state], 1)))
        own = shares_of(every, more)
        self._try(rows, target, more, own, columns_of(more), torch.zeros_like(own, dtype=torch.bool), found)
        fits = self.noise.loudness(target[at], self._best(found, target)[1][at]) <= _LOUD[-1]
        self.lost[text[some[told_one(~fits)]]] += 1
        return True

    @staticmethod
    def _best(found: Found, target: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest token of each row that was tried, `[n]`, and its state `[n, D]`."""
        best = found.joint.argmax(-1, keepdim=True)
        state = found.states.gather(1, best[..., None].expand(-1, -1, target.shape[-1]))[:, 0]
        return found.ids.gather(1, best)[:, 0], state

    def _try(
        self,
        rows: Tensor,
        target: Tensor,
        ids: Tensor | None,
        expected: Tensor,
        columns: Tensor,
        tried: Tensor,
        found: Found,
    ) -> None:
        """Add what candidates `columns [n, C]` give, −1 behind them; calls are of rows that ask for about as many."""
        count = told_one((columns >= 0).sum(-1))
        columns = columns[:, : int(count.max())]
        states = target.new_zeros(*columns.shape, target.shape[-1])
        token = columns.clamp_min(0) if ids is None else ids.gather(1, columns.clamp_min(0))
        most = columns.shape[1]
        while most:
            some = ((count <= most) & (count > most // 4)).nonzero().flatten()
            for part in some.split(max(1, self.settings.tokens_per_call // most)) if len(some) else ():
                there = sent_one(token.device, part)
                states[there, :most] = self.lanes.fan_out(rows[part], token[there, :most]).float()
            most //= 4
        joint = expected.gather(1, columns.clamp_min(0)) + self.noise.log_density(target[:, None], states)
        found.ids = torch.cat([found.ids, token], 1)
        found.joint = torch.cat([found.joint, joint.masked_fill(columns < 0, _NONE)], 1)
        found.states = torch.cat([found.states, states], 1)
        at, column = (columns >= 0).nonzero(as_tuple=True)
        tried[at, columns[at, column]] = True

    def _go_on(self, rows: Tensor, text: Tensor, found: Found, pending: bool) -> None:
        """The best continuations of each text take over its lanes; the others are remembered as given up."""
        W, C, hypotheses = self.settings.width, found.joint.shape[1], self.hypotheses
        B, (tokens, joint, rest) = len(self.slots), told(found.ids, found.joint, found.untried)
        table = torch.full((B * W, C), _NONE, dtype=torch.float64)
        table[rows] = joint
        place = torch.zeros(B * W, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        total = self._total(text, torch.cat([joint, rest[:, None]], 1))
        before = hypotheses.weight.logsumexp(-1)
        here = text.unique()
        value, order = table.view(B, W * C)[here].topk(min(2 * W, W * C), -1)
        beyond = table.view(B, W * C).clone()  # what is not even remembered counts as untried
        beyond[here] = beyond[here].scatter(1, order, _NONE)
        untried = torch.logaddexp(rest, beyond.view(B * W, C).logsumexp(-1)[rows])
        share = value + (before - total)[here][:, None]  # what goes on shares out what it had
        stays = share[:, :W] > share[:, :1] - self.settings.drop
        parent, column = here[:, None] * W + order // C, order % C
        ids = tokens[place[parent], column]
        self._remember(here, rows, text, share, stays, parent, ids, untried, before - total)
        lane = here[:, None] * W + torch.arange(stays.shape[1])
        hypotheses.weight[here] = _NONE
        hypotheses.weight[here[:, None], torch.arange(stays.shape[1])] = share[:, :W].masked_fill(~stays, _NONE)
        to, of, token = lane[stays], parent[:, :W][stays], ids[:, :W][stays]
        states = picked(found.states, place[of], column[:, :W][stays])
        if pending and torch.equal(to, rows) and torch.equal(to, of):  # the call that tried them has their keys
            self.lanes.commit(rows, token[:, None], torch.ones_like(rows), place[rows])
        else:
            branch(self.lanes, to, of)
            self.lanes.draft(to, token[:, None])
            self.lanes.commit(to, token[:, None], torch.ones_like(to), torch.arange(len(to)))
        self.state[sent_one(states.device, to)] = states
        self.prior.go_on(to, of, token)

    def _remember(
        self,
        here: Tensor,
        rows: Tensor,
        text: Tensor,
        share: Tensor,
        stays: Tensor,
        parent: Tensor,
        ids: Tensor,
        untried: Tensor,
        scale: Tensor,
    ) -> None:
        """What was tried and does not go on, and what was not tried, of the hypotheses of texts `here [b]`."""
        W, at = self.settings.width, self.length[here]
        gone = share.clone()
        gone[:, :W] = gone[:, :W].masked_fill(stays, _NONE)
        every = here[:, None] * W + torch.arange(W)
        rest = torch.full((len(self.slots) * W,), _NONE, dtype=torch.float64)
        rest[rows] = untried + scale[text]
        parents = torch.cat([parent, every], 1)
        last = torch.cat([ids, torch.full_like(every, UNTRIED)], 1)
        lost = self.lanes.ids[parents]
        lost.scatter_(2, at[:, None, None].expand(*last.shape, 1), last[..., None])
        length = (at[:, None] + 1).expand(last.shape)
        self.hypotheses.give_up(here, torch.cat([gone, rest[every]], 1), lost, length)

    def _listed(self, text: Tensor, at: Tensor, token: Tensor, expected: Tensor) -> Tensor | None:
        """Of a large vocabulary the tokens that are looked at, `[n, C]`: the drafted one, those of the lens's list, and
        what the prior puts first."""
        if self.lists is None:
            return None
        listed = picked(self.lists, text, at).long()[:, : self.settings.listed - 1]
        count = self.settings.listed - 1 - listed.shape[1]
        likely = expected.topk(min(count, expected.shape[1]), -1).indices
        return once(torch.cat([token[:, None], listed, likely], 1))

    @staticmethod
    def _column(ids: Tensor | None, token: Tensor) -> Tensor:
        return token[:, None] if ids is None else torch.zeros_like(token)[:, None]

    def _total(self, text: Tensor, joint: Tensor) -> Tensor:
        """log Σ exp of `joint [n, C]` over all rows of each text, `[B]`."""
        own = joint.logsumexp(-1)
        table = torch.full((len(self.slots), len(text)), _NONE, dtype=torch.float64, device=own.device)
        table[text, torch.arange(len(text), device=own.device)] = own
        return table.logsumexp(-1)

    def marginals(self, text: int) -> Marginals:
        """Of a text that is done."""
        W, length = self.settings.width, int(self.length[text])
        ids = self.lanes.ids[text * W : (text + 1) * W, :length]
        return self.hypotheses.marginals(text, ids, int(self.start[text]))

    def _charge(self) -> None:
        """What the lanes of hypotheses computed is the cost of their texts."""
        spent = self.lanes.forward_tokens - self._charged + self.prior.spent()
        self._charged = self.lanes.forward_tokens.clone()
        self.context.lanes.charge(self.slots, spent.view(len(self.slots), -1).sum(-1))
