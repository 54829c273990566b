"""Draft the whole text from its states, verify it in one pass, repair the first mismatch, go on from there.

What no published system does: a lens reads a draft off H without any forward pass, and causality lets one
teacher-forced pass certify everything before the first mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.protocol import Behind, Block, Context, Run
from ..lens.base import Lens
from ..lens.choose import choose_lens
from ..lens.linear import LinearLens
from ..lens.outside import LensMaker
from ..lens.repair import GROWTH, GROWTH_OF_LARGE
from ..lens.sharpen import Sharpener, sharpener_of
from ..model.decoder import Decoder
from ..model.transfer import picked, sent, sent_one, told
from .blocks import Ranked, growing_blocks, together
from .candidates import Candidates

# What a further round costs in tokens: each lane in it, and the call, whose layers have to be gone through and their
# weights read. The less a token computes, the more of them that is, up to 96 of a small model.
_LANE_TOKENS, _CALL_MOST, _CALL_LEAST, _CALL_WEIGHTS = 1.0, 96.0, 8.0, 1e8
_IN_VAIN = 0.4  # share of the draft behind a doubtful token that is computed in vain
_WORST = 0.9  # error: even a token that is most likely wrong may be worth verifying
_NEAR = 0.02  # doubt of a token whose state came near behind a mismatch
_SCORES_AT_ONCE, _WHOLE_SCORES = 1 << 21, 1 << 22
# Of a large vocabulary: so many times as many candidates, which then take as long as the 60 gradient steps that would
# come next; and so many times smaller a largest block, since what is tried in vain is dear.
_MORE_OF_LARGE, _LESS_AT_ONCE = 8, 4
_TOLD = 2.0  # errors: how much what is believed beforehand counts against what a lane shows


@dataclass(frozen=True)
class Speculative:
    """first_block: candidates in the first repair block of a position (None: as many as the fit found cheapest), each
    later one is `growth` times the one before (None: 4, of a large vocabulary 2), up to max_block, of a large
    vocabulary up to a quarter of it; max_candidates: leave a position to the next strategy after that many, of a large
    vocabulary eight times as many (None: try all); lens: auto | linear | learned (see `lens.choose_lens`), the name of
    one that a package registered, a `Lens`, or what makes one of `(decoder, vocabulary, states_dtype)`; seed: of a
    linear lens fitted on first use.
    """

    first_block: int | None = None
    growth: int | None = None
    max_block: int = 1024
    max_candidates: int | None = 512
    seed: int = 0
    lens: str | Lens | LensMaker = "auto"
    name: str = "speculative"

    def bind(self, context: Context) -> _Proposer:
        """See `Strategy`."""
        lens = choose_lens(context.decoder, context.vocabulary, self.lens, context.states_dtype, self.seed)
        sharpener = sharpener_of(context.decoder, context.vocabulary, lens, self.seed)
        return _Proposer(self, context, lens, sharpener)


class _Proposer:
    """The drafts of all lanes, and how long a chunk of them is worth verifying at once: on the host."""

    def __init__(self, settings: Speculative, context: Context, lens: Lens, sharpener: Sharpener | None):
        self.settings, self.context, self.candidates = settings, context, Candidates(context, lens)
        self.sharpener = sharpener
        repair, lanes = lens.repair, context.lanes
        self.call_tokens = _call_tokens(context.decoder)
        self.first_block = settings.first_block or repair.first_block
        self.growth = settings.growth or (GROWTH_OF_LARGE if self.candidates.listed else GROWTH)
        self.drafts = torch.zeros(lanes.slots, lanes.max_len, dtype=torch.long)
        self.first_drafts = torch.zeros_like(self.drafts)  # as the lens made them
        # doubt: −log(1 − how likely each drafted token is wrong, as is believed); errors so far: believed and made
        self.doubt = torch.zeros(lanes.slots, lanes.max_len)
        self.believed, self.made = torch.zeros(lanes.slots), torch.zeros(lanes.slots)
        self.all_believed, self.all_made = _TOLD, _TOLD
        self.led, self.repairs = 16 * repair.first, 16.0  # repairs that the leading candidate ended, and all
        self.lead = torch.full_like(lanes.length, -1)  # the candidate that led the repair a lane is in
        self.seen = torch.zeros_like(lanes.length)

    def begin(self, slots: Tensor) -> None:
        if self.sharpener is not None and isinstance(self.candidates.lens, LinearLens):
            self.candidates.use(self.sharpener.latest(self.candidates.lens))
        self.seen[slots], self.lead[slots] = 0, -1
        self.believed[slots], self.made[slots] = 0.0, 0.0
        lanes = self.context.lanes
        for group in _alike(lanes.target_length[slots], self.call_tokens):
            chosen = slots[group]
            longest = int(lanes.target_length[chosen].max())
            if longest:
                hidden = lanes.targets[sent_one(lanes.device, chosen), :longest]
                self.drafts[chosen, :longest], error = self.candidates.draft(chosen, hidden)
                self.first_drafts[chosen, :longest] = self.drafts[chosen, :longest]
                self.doubt[chosen, :longest] = _doubt(error)

    def propose(self, slots: Tensor) -> list[Run | Block]:
        tries = self.context.attempts.tries[slots]
        self._learn(slots, tries)
        lost = slots[self.context.attempts.failed[slots]]
        if len(lost):  # nothing verified tells of their tokens: what a text gets must not hang on how its runs were cut
            self.drafts[lost] = self.first_drafts[lost]
        if not bool(tries.any()):
            return [*self._runs(slots, len(slots))]
        if self.settings.max_candidates is not None:
            most = self.settings.max_candidates * (_MORE_OF_LARGE if self.candidates.listed else 1)
            slots, tries = (t[tries < most] for t in (slots, tries))
        stuck, runs = slots[tries > 0], slots[tries == 0]
        blocks: list[Block] = []
        for part, whole in self._kinds(stuck):
            attempts, position = self.context.attempts, self.context.lanes.length[part]
            near = picked(attempts.near_state, part), attempts.near_ids[part, 0]
            ranked = self.candidates.ranked(part, position, *near, whole=whole)
            fresh = attempts.tries[part] == 1
            if bool(fresh.any()):
                again = self._lead_on(part[fresh], ranked[fresh], len(slots))
                runs = torch.cat([runs, again])
                left = ~torch.isin(part, again)
                part, ranked = part[left], ranked[left]
            if len(part):
                most = max(1, self.settings.max_block // (_LESS_AT_ONCE if self.candidates.listed else 1))
                blocks += growing_blocks(self.context, part, ranked, self.first_block, self.growth, most)
        if self.candidates.listed:  # of a small model a call costs many tokens, but little
            blocks = together(blocks, self.call_tokens)
        return [*blocks, *(self._runs(runs, len(slots)) if len(runs) else ())]

    def _kinds(self, stuck: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Lanes that are scored together, and whether over the whole vocabulary: a few at once where that is large."""
        if self.candidates.listed and len(stuck):
            lanes, tries = self.context.lanes, self.context.attempts.tries[stuck]
            # what was not among the first few of its list mostly is not in it
            listed = self.candidates.untried(stuck, lanes.length[stuck]) & (tries <= self.first_block)
            if bool(listed.any()):
                yield stuck[listed], False
            for part in stuck[~listed].split(max(1, _WHOLE_SCORES // self.context.vocabulary.size)):
                if len(part):
                    yield part, True
        elif len(stuck):
            yield stuck, True

    def _lead_on(self, slots: Tensor, ranked: Ranked, lanes: int) -> Tensor:
        """Put the leading candidate of a mismatch into the draft. Returns the lanes where it is trusted enough to be
        verified together with what follows, instead of in a block of alternatives before that."""
        position = self.context.lanes.length[slots]
        left = ranked.untried(self.context, slots)
        best, column = left.scores.max(-1)
        best, lead = told(best, left.token(column[:, None])[:, 0].clamp_min(0))
        sure = self.led / self.repairs
        self.drafts[slots, position], self.lead[slots] = lead, lead
        self.doubt[slots, position] = -math.log(max(sure, 1 - _WORST))
        worth = sure * (self.first_block + self._round(lanes)) > (1 - sure) * self._chunks(slots, lanes)
        return slots[worth & (best > -math.inf)]

    def _runs(self, slots: Tensor, lanes: int) -> Iterator[Run]:
        """A chunk of each lane's draft from its position on; chunks of like length together. What would be padding is
        draft as well: it costs nothing more to verify."""
        length, counts = self.context.lanes.length[slots], self._chunks(slots, lanes)
        left = self.context.lanes.target_length[slots] - length
        if len(slots) == 1:
            start, count = int(length), int(counts)
            yield Run(slots, self.drafts[slots, start : start + count], counts)
            return
        for group in _alike(counts, self.call_tokens, left):
            longest = int(counts[group].max())
            step = torch.arange(longest)
            columns = (length[group][:, None] + step).clamp_max(self.context.lanes.max_len - 1)
            yield Run(slots[group], self.drafts[slots[group][:, None], columns], left[group].clamp_max(longest))

    def _round(self, lanes: int) -> float:
        return _LANE_TOKENS + self.call_tokens / lanes

    def _chunks(self, slots: Tensor, lanes: int) -> Tensor:
        """How many drafted tokens of each lane are worth verifying at once, `[b]`.

        Token j counts if it and all before it are right: with probability s_j = Π_{i≤j} (1 − error_i)^w, where w is how
        much worse things went so far than was believed. It is worth its computation while s_j ρ > 1, where ρ is what a
        token costs all in all; the one that is not ends the chunk, so that a doubtful token is tested with nothing
        behind it. At error rate p, with rounds that cost r tokens, chunks of c = √(2r/p) tokens are cheapest, and ρ is
        then 1 + √(2rp).
        """
        length, ends = self.context.lanes.length[slots], self.context.lanes.target_length[slots]
        left = ends - length
        doubt = self._doubt_before(slots)
        here, last = doubt.gather(1, torch.stack([length, ends], 1)).unbind(1)
        worse = (self.made[slots] + _TOLD * self.all_made / self.all_believed) / (self.believed[slots] + _TOLD)
        price = 1 + (2 * self._round(lanes) * worse * (last - here) / left).sqrt()
        bearable = here + price.log() / worse
        return (torch.searchsorted(doubt, bearable[:, None])[:, 0] - length).clamp_min(1).minimum(left)

    def _doubt_before(self, slots: Tensor) -> Tensor:
        """Sum of the doubt of all tokens before each position, `[b, M + 1]`."""
        return F.pad(self.doubt[slots].cumsum(-1), (1, 0))

    def _learn(self, slots: Tensor, tries: Tensor) -> None:
        """Compare what happened since the last look with what was believed: errors, and repairs ended by their lead."""
        lanes = self.context.lanes
        length, failed, seen, lead = lanes.length[slots], tries == 1, self.seen[slots], self.lead[slots]
        # a repaired position was counted when it failed
        first = seen + (lead >= 0)
        edges = torch.stack([first, (length + failed).maximum(first)], 1)
        before, after = self._doubt_before(slots).gather(1, edges).unbind(1)
        believed = after - before
        self.believed[slots] += believed
        self.made[slots] += failed
        self.all_believed += float(believed.sum())
        self.all_made += float(failed.sum())
        ended = slots[(length > seen) & (lead >= 0)]
        if len(ended):
            self.repairs += len(ended)
            self.led += float((lanes.ids[ended, self.seen[ended]] == self.lead[ended]).sum())
            self.lead[ended] = -1
        self.seen[slots] = length

    def finished(self, slots: Tensor, certified: Tensor) -> None:
        """What was certified beyond position 0 teaches a linear lens."""
        if self.sharpener is None or not self.sharpener.teachable:
            return
        lanes = self.context.lanes
        known = certified & (torch.arange(lanes.max_len) < lanes.target_length[slots][:, None])
        row, position = known[:, 1:].nonzero(as_tuple=True)
        lane, position = slots[row], position + 1
        lane, position, ids = sent(lanes.device, lane, position, lanes.ids[lane, position])
        self.sharpener.learn(ids, *(lanes.targets[lane, at] for at in (position, position - 1)))

    def ended(self) -> None:
        if self.sharpener is not None and self.sharpener.teachable:
            self.sharpener.keep()

    def observe(self, behind: Behind) -> None:
        """Drafts behind a mismatch: those that came near stand all but proved, the others are thought over."""
        slots, positions, near = behind.slots, behind.positions, behind.near
        self.doubt[slots[near], positions[near]] = self.doubt[slots[near], positions[near]].clamp_max(_NEAR)
        far, size = (~near).nonzero().flatten(), self.candidates.width
        for part in far.split(max(1, _SCORES_AT_ONCE // size)):
            slot, position, wrong = slots[part], positions[part], behind.ids[part]
            state = picked(behind.hidden, behind.rows[0][part], behind.rows[1][part]).float()
            left = self.candidates.believed(slot, position, state, wrong).allowed(self.context)
            (token,) = told(left.token(left.scores.argmax(-1, keepdim=True))[:, 0].clamp_min(0))
            self.drafts[slot, position] = token
            other = token != wrong
            self.doubt[slot[other], position[other]] = -math.log(max(self.led / self.repairs, 1 - _WORST))


def _doubt(error: Tensor) -> Tensor:
    return -torch.log1p(-error.nan_to_num(nan=1.0).clamp_max(_WORST))


def _call_tokens(decoder: Decoder) -> float:
    """On a CPU by the weights of a layer; a GPU has computed many tokens by the time that a call is on its way."""
    if decoder.device.type != "cpu":
        return _CALL_MOST
    layers = int(getattr(decoder.model.config.get_text_config(), "num_hidden_layers", 0) or 1)
    weights = decoder.parameters - decoder.embedding.shape.numel()
    return min(_CALL_MOST, _CALL_LEAST + _CALL_WEIGHTS * layers / max(1, weights))


def _alike(counts: Tensor, call_tokens: float, left: Tensor | None = None) -> Iterator[Tensor]:
    """Indices in groups of like count, longest first, that go through a call together.

    A group grows while what it computes in vain costs less than a call of its own would, or an eighth of all. Rows
    that could go on beyond their count (`left` tokens are there in all) are filled up with draft: mostly not in vain.
    """
    order = counts.argsort(descending=True, stable=True)
    left = counts if left is None else left
    while len(order):
        wanted, there, longest = counts[order], left[order], counts[order[0]]
        vain = (longest - there).clamp_min(0) + _IN_VAIN * (there.minimum(longest) - wanted)
        whole = longest * torch.arange(1, len(order) + 1)
        count = int((vain.cumsum(0) <= (whole / 8).clamp_min(call_tokens)).int().cumprod(0).sum())
        yield order[:count]
        order = order[count:]
