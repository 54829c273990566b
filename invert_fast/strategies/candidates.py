"""What a lens and the model's own prior say of the tokens of texts: drafts, and candidates where those are wrong.

Of a vocabulary of many thousands a row of scores costs as much as a forward pass. There each position has a short list,
made with the draft, and the whole vocabulary is scored only when the first few of it were tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.protocol import Context
from ..lens.base import Lens
from ..lens.linear import LinearLens
from ..lens.orders import orders, ranked_ids, take_turns
from ..lens.prior import draft_lists
from ..lens.second_look import doubtful, look_again
from ..model.transfer import picked, sent, sent_one, told
from ..ops.best_two import LISTED, MANY_TOKENS
from .blocks import Ranked

_ROWS_AT_ONCE = 4096  # of states, that another lens looks at
_FROM_ALL = 3072  # of the whole vocabulary, in each order
_TABLES_AT_ONCE = 20  # positions whose candidates are ordered at once: a few tables of scores of all tokens for each


def charge_ends(context: Context, slots: Tensor) -> None:
    """What it costs to run on from the captured states of these lanes' texts: see `Decoder.ends`."""
    onward = context.decoder.onward
    assert onward is not None
    context.lanes.charge(slots, forward=(context.lanes.target_length[slots] * onward.tokens).round().long())


class Candidates:
    """Those of all lanes, beside the model; lanes and positions are named on the host. listed: whether positions have
    short lists; width: how many candidates are scored at once."""

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
            self.weights = torch.zeros(shape[:2], device=device)
            self._whole: dict[int, tuple[int, Ranked]] = {}  # by lane: of which position, and its candidates
            self._ends = lanes.targets  # what tells the next token at each position: at an inner layer made when asked
            self._ended = torch.full((lanes.slots,), self.near_head)

    def use(self, lens: Lens) -> None:
        """From now on this one. What texts were drafted with another stays; their candidates are ordered anew."""
        if lens is self.lens:
            return
        self.lens, self.repair = lens, lens.repair
        at_once = max(1, _ROWS_AT_ONCE // max(1, self.context.lanes.max_len))
        for part in torch.arange(self.context.lanes.slots, device=self.proxies.device).split(at_once):
            self.proxies[part] = lens.proxies(self.context.lanes.targets[part])
        if self.listed:
            self._whole.clear()

    def draft(self, slots: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that the lens makes of whole texts `hidden [b, T, D]` in these lanes, and how likely each is
        wrong, `[b, T]` each, on the host."""
        T, at = hidden.shape[1], sent_one(hidden.device, slots)
        if self.listed:
            found = draft_lists(self.context.decoder, self.lens, hidden)
            self.proxies[at, :T], self.list_scores[at, :T] = found.proxies, found.scores
            self.lists[at, :T], self.weights[at, :T] = found.ids.int(), found.weight
            if not self.near_head:
                self._ended.index_fill_(0, slots, False)
                if found.ends is not None:
                    self._keep_ends(slots, found.ends)
            for slot in slots.tolist():
                self._whole.pop(slot, None)
            drafts, error = told(found.ids[..., 0], found.error)
            return drafts, error
        self.proxies[at, :T] = proxies = self.lens.proxies(hidden)
        drafts, leads = self.lens.best(proxies)
        error = self.repair.error(leads)
        if self.looks_again:
            rows = doubtful(error)
            drafts[rows], leads = look_again(self.context.decoder, self.lens, hidden, proxies, *rows)
            error[rows] = self.repair.error(leads, self.repair.second_look)
        drafts, error = told(drafts, error)
        return drafts, error

    def _keep_ends(self, slots: Tensor, ends: Tensor) -> None:
        lanes, onward = self.context.lanes, self.context.decoder.onward
        assert onward is not None
        if self._ends is lanes.targets:
            self._ends = torch.zeros(lanes.slots, lanes.max_len, ends.shape[2], device=ends.device)
        self._ends[sent_one(ends.device, slots), : ends.shape[1]] = ends
        self._ended.index_fill_(0, slots, True)
        charge_ends(self.context, slots)

    def _before(self, slots: Tensor, position: Tensor) -> Tensor | None:
        """`Decoder.ends` at the positions before these, `[n, D]`; None where they cannot be had."""
        if not self.near_head:
            if self.context.decoder.onward is None:
                return None
            missing = slots[~self._ended[slots]].unique()
            if len(missing):
                lanes = self.context.lanes
                longest = int(lanes.target_length[missing].max())
                ends = self.context.decoder.ends(lanes.targets[sent_one(lanes.device, missing), :longest])
                assert ends is not None
                self._keep_ends(missing, ends)
        return picked(self._ends, slots, (position - 1).clamp_min(0))

    def untried(self, slots: Tensor, position: Tensor) -> Tensor:
        """`[n]` bool: the lists of these positions have a token that was not tried there."""
        (ids,) = told(picked(self.lists, slots, position))
        return ((ids >= 0) & ~self.context.attempts.tried[slots[:, None], ids.clamp_min(0).long()]).any(-1)

    def ranked(
        self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor, whole: bool = False
    ) -> Ranked:
        """The candidates of n positions in posterior order, weighted as the fit found best. Token `wrong [n]` was seen
        to give `wrong_state [n, D]`, beside the model, there. Where there are lists, candidates are of these; whole: of
        all tokens nevertheless."""
        if self.listed and whole:
            return self._from_all(slots, position, wrong_state, wrong)
        if self.listed:
            return self._from_lists(slots, position, wrong_state, wrong)
        targets, repair = self.context.lanes.targets, self.repair
        slot, position, wrong = sent(self.proxies.device, slots, position, wrong)
        scores = repair.change * self.lens.change_scores(targets[slot, position], wrong_state, wrong)
        if repair.row:
            scores += repair.row * self.lens.scores(self.proxies[slot, position], position == 0)
        if repair.prior and self.near_head:
            prior = self.context.decoder.log_probs(targets[slot, (position - 1).clamp_min(0)])
            scores += repair.prior * prior.masked_fill_((position == 0)[:, None], 0.0)
        return Ranked(scores)

    def believed(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> Ranked:
        """The same, by one sum of scores in which the wrong token, seen in a context that is not its own, is a
        candidate as well."""
        if not self.listed:
            return self.ranked(slots, position, wrong_state, wrong)
        slot, position, wrong = sent(self.proxies.device, slots, position, wrong)
        ids = self.lists[slot, position].long()
        change = self.lens.change_scores(self.context.lanes.targets[slot, position], wrong_state, wrong, ids)
        with_prior = self.near_head or self.lens.prior is not None
        return Ranked(self.list_scores[slot, position] + (change if with_prior else self.repair.change * change), ids)

    def _from_lists(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> Ranked:
        targets, repair, decoder = self.context.lanes.targets, self.repair, self.context.decoder
        before = self._before(slots, position)
        slots, position, wrong = sent(self.proxies.device, slots, position, wrong)
        ids, scores = self.lists[slots, position].long(), self.list_scores[slots, position]
        change = self.lens.change_scores(targets[slots, position], wrong_state, wrong, ids)
        weight = self.weights[slots, position]
        if before is None:
            return Ranked(repair.change * change + repair.row * scores, ids)
        prior = decoder.logits_of(before, ids).masked_fill_((position == 0)[:, None], 0.0)
        row = scores - weight[:, None] * prior.masked_fill(ids < 0, 0.0)
        tables = orders(row, prior, change, weight)
        lists = [ranked_ids(table.masked_fill(ids < 0, float("-inf")), LISTED, ids) for table in tables]
        found, turns = take_turns(*lists)
        return Ranked(turns, found)

    def _from_all(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> Ranked:
        """Of all tokens; scored once a position, since every row of scores costs as much as many tokens verified."""
        embedding = self.context.vocabulary.embedding
        if self._before(slots, position) is None:
            return Ranked(embedding.scores(*self._whole_row(slots, position, wrong_state, wrong)))
        at = [*zip(slots.tolist(), position.tolist(), strict=True)]
        new = [i for i, (slot, place) in enumerate(at) if self._whole.get(slot, (-1, None))[0] != place]
        for some in (new[start : start + _TABLES_AT_ONCE] for start in range(0, len(new), _TABLES_AT_ONCE)):
            found = self._ordered(slots[some], position[some], picked(wrong_state, torch.tensor(some)), wrong[some])
            for row, i in enumerate(some):
                self._whole[at[i][0]] = at[i][1], found[row : row + 1]
        kept = [self._whole[slot][1] for slot, _ in at]
        ids = torch.cat([one.ids for one in kept if one.ids is not None])
        ranked = Ranked(torch.cat([one.scores for one in kept]), ids)
        left = ranked.untried(self.context, slots).scores > float("-inf")
        if bool(left.any(-1).all()):
            return ranked
        return Ranked(embedding.scores(*self._whole_row(slots, position, wrong_state, wrong)))  # the rest, in one order

    def _whole_row(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """Proxies and bias of which the scores of lens and change, as the fit weighed them, are the product: the
        embedding matrix is read once for both."""
        repair = self.repair
        slots, position, wrong = sent(self.proxies.device, slots, position, wrong)
        change, fixed = self.lens.change_proxies(self.context.lanes.targets[slots, position], wrong_state, wrong)
        proxies = repair.change * change + repair.row * self.proxies[slots, position]
        bias = repair.change * fixed + (repair.row * self.lens.row_bias if repair.row else 0.0)
        return proxies, bias

    def _ordered(self, slots: Tensor, position: Tensor, wrong_state: Tensor, wrong: Tensor) -> Ranked:
        vocabulary, before = self.context.vocabulary, self._before(slots, position)
        assert before is not None
        slots, position, wrong = sent(self.proxies.device, slots, position, wrong)
        row, prior, change = self._tables(slots, position, before, wrong_state, wrong)
        prior.masked_fill_((position == 0)[:, None], 0.0).masked_fill_(~vocabulary.allowed, float("-inf"))
        most = min(_FROM_ALL, vocabulary.size)
        tables = orders(row, prior, change, self.weights[slots, position])
        ids, turns = take_turns(*(ranked_ids(_numbers(table, prior), most) for table in tables))
        return Ranked(turns, ids.int())

    def _tables(
        self, slots: Tensor, position: Tensor, before: Tensor, wrong_state: Tensor, wrong: Tensor
    ) -> tuple[Tensor, ...]:
        """Scores of all tokens, `[n, V]` each: by the lens alone, by the prior up to a constant, by the change lens. A
        head that is the embedding matrix is read once for all three: that is what they cost."""
        decoder, embedding, lens = self.context.decoder, self.context.vocabulary.embedding, self.lens
        target, proxy, start = self.context.lanes.targets[slots, position], self.proxies[slots, position], position == 0
        if decoder.tied_scale is None or not isinstance(lens, LinearLens):
            row, change = lens.scores(proxy, start), lens.change_scores(target, wrong_state, wrong)
            return row, decoder.log_probs(before), change
        changed, fixed = lens.change_proxies(target, wrong_state, wrong)
        factor = embedding.factor
        ends = decoder.head_input(before).float() * (factor / decoder.tied_scale)
        row, prior, change = embedding.times(torch.cat([proxy * factor, ends, changed * factor])).chunk(3)
        return row.add_(lens.bias_at(start)), prior, change.add_(fixed)


def _numbers(scores: Tensor, prior: Tensor) -> Tensor:
    """−∞ for what is no candidate, whatever the weight of a prior of −∞ made of it."""
    return scores.masked_fill(scores.isnan() | (prior == float("-inf")), float("-inf"))
