"""The batch: lanes that each recover one text, over one static prefix storage.

A lane holds its target rows, its committed tokens and its prefix KV. Lanes stand at different positions; a finished
lane is handed the next text, so no step waits for a straggler. Questions are asked for any subset of lanes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import PARTS
from .decoder import Decoder
from .gradient import loss_and_gradient
from .prefix import Passed, PrefixCall
from .replay import programs_of
from .transfer import picked, send_into, sent, sent_one, told_one


@dataclass
class Held:
    """The prefixes of some lanes, ready for many fan-outs of one token: `positions [b, 1]`, what attention sees, in
    which precision, and how products are computed (`precision.products`)."""

    call: PrefixCall
    positions: Tensor
    dtype: torch.dtype
    compute: str = "float32"


class Span(NamedTuple):
    """A run of positions of some lanes: where they are in a table `[S, M]` of all lanes, and in one `[b, K]` of these
    lanes' next positions, both on the host. alone: of a single lane, so that both are slices."""

    to: tuple[Any, Any]
    of: tuple[Any, Any]
    alone: bool = False


class Lanes:
    """`slots` lanes of up to `max_len` tokens of one decoder.

    targets `[S, M, D]` fp32; ids `[S, M]`; target_length, length `[S]`: tokens to recover and committed so far;
    text `[S]`: index of the text in a lane, −1 when idle; forward_tokens, backward_tokens `[S]`: tokens computed for
    the lane's text, and those of them that a gradient was taken of.
    part, parts `[S, len(PARTS)]`: what of the cost of a text is computed now, and the tokens computed for each so far.
    Storage is per layer `[S, Hkv, M, d]`, made on the first commit that needs it: texts whose first draft is right from
    end to end never touch it.
    Targets, storage and what is asked for are on the decoder's device, all else on the host (`transfer.py`): slots and
    lengths are given there, tokens on either.
    """

    at_once = 1024  # continuations that `fan_out_at` had better be asked for in one call

    def __init__(self, decoder: Decoder, slots: int, max_len: int):
        self.decoder, self.slots, self.max_len, self.device = decoder, slots, max_len, decoder.device
        self.targets = torch.zeros(slots, max_len, decoder.width, device=self.device)
        self.ids = torch.zeros(slots, max_len, dtype=torch.long)
        self.target_length = torch.zeros(slots, dtype=torch.long)
        self.length = torch.zeros_like(self.target_length)
        self.text = torch.full_like(self.target_length, -1)
        self.forward_tokens = torch.zeros_like(self.target_length)
        self.backward_tokens = torch.zeros_like(self.target_length)
        self.parts = torch.zeros(slots, len(PARTS), dtype=torch.long)
        self.part = PARTS[0]
        self.keys: list[Tensor] | None = None
        self.values: list[Tensor] | None = None
        self._pending: PrefixCall | None = None

    def load(self, slots: Tensor, texts: list[int], hidden: list[Tensor]) -> None:
        """Give idle lanes their next texts: `hidden[i] [T_i, D]`, on any device, goes to lane `slots[i]`."""
        for slot, rows in zip(slots.tolist(), hidden, strict=True):
            send_into(self.targets[slot, : len(rows)], rows)
        self.target_length[slots], self.text[slots] = torch.tensor([[len(rows) for rows in hidden], texts])
        for table in (self.length, self.forward_tokens, self.backward_tokens, self.parts):
            table.index_fill_(0, slots, 0)

    def active(self) -> Tensor:
        """Lanes with tokens left to recover."""
        return (self.length < self.target_length).nonzero().flatten()

    def finished(self) -> Tensor:
        """Lanes whose text is complete and not yet taken away."""
        return ((self.text >= 0) & (self.length == self.target_length)).nonzero().flatten()

    def idle(self) -> Tensor:
        return (self.text < 0).nonzero().flatten()

    def release(self, slots: Tensor) -> None:
        self.text.index_fill_(0, slots, -1)
        for table in (self.length, self.target_length):
            table.index_fill_(0, slots, 0)

    def target(self, slots: Tensor) -> Tensor:
        """The state each lane has to reproduce next, `[b, D]`."""
        return picked(self.targets, slots, self.length[slots])

    def fan_out(self, slots: Tensor, ids: Tensor) -> Tensor:
        """N independent continuations of each lane's prefix: `[b, N] → [b, N, D]`. The prefix KV is shared by the N,
        never copied per candidate."""
        return self.fan_out_of(slots, self.embedded(ids))

    def fan_out_of(self, slots: Tensor, embeds: Tensor) -> Tensor:
        """As `fan_out` for embeddings that need not be any token's, `[b, N, D_embedding] → [b, N, D]`; differentiable
        in them where they ask for it."""
        positions = self.length[slots][:, None].expand(embeds.shape[:2])
        return self._forward(slots, embeds, positions, self.call(slots, causal=False))

    def embedded(self, ids: Tensor) -> Tensor:
        """`Decoder.embed` of tokens that may be on the host."""
        return self.decoder.embed(sent_one(self.device, ids))

    def fan_out_at(self, slots: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        """Continuations of the first `lengths [b]` committed tokens of lanes, which may come several times in `slots
        [b]`: `[b, N] → [b, N, D]`. Not to be committed. Lanes that are complete must have been kept."""
        positions = lengths[:, None].expand(ids.shape)
        hidden = self._forward(slots, self.embedded(ids), positions, self.call(slots, False, lengths))
        self._pending = None
        return hidden

    def take_back(self, slots: Tensor, lengths: Tensor) -> None:
        """These lanes are at `lengths [b]` again; what they committed behind is as if it had not been."""
        self.length[slots] = lengths

    def hold(
        self, slots: Tensor, dtype: torch.dtype | None = None, compute: str = "float32", *, once: bool = False
    ) -> Held:
        """The prefixes of these lanes, laid out once for many fan-outs; of no use once one of them moves on.

        dtype: precision of those fan-outs, where it is not the model's; compute: see `precision.products`; once: there
        will be one fan-out only, for which they stay where they are.
        """
        call = self.call(slots, causal=False)
        if not once and call.slots is not None and call.keys is not None and call.values is not None:
            call.keys, call.values = [k[call.slots] for k in call.keys], [v[call.slots] for v in call.values]
            call.slots = None
        if dtype is not None and call.keys is not None and call.values is not None:
            call.keys, call.values = [k.to(dtype) for k in call.keys], [v.to(dtype) for v in call.values]
        positions = sent_one(self.device, self.length[slots])[:, None]
        return Held(call, positions, dtype or self.decoder.dtype, compute)

    def gradient(self, slots: Tensor, value: Tensor, target: Tensor, held: Held) -> tuple[Tensor, Tensor]:
        """MSE(f(e), h) `[b]` and its gradient `[b, D_e]` at `value [b, D_e]`, for lanes whose prefixes are held."""
        call, positions = held.call, held.positions
        found = programs_of(self.decoder).gradient(self.decoder, value.to(held.dtype), positions, target, call)
        if found is None:
            found = loss_and_gradient(
                lambda embeds: self.decoder.run(embeds, positions, call, held.compute),
                *(value, target, held.dtype, held.compute),
            )
        self.charge(slots, forward=1, backward=1)
        return found

    def charge(self, slots: Tensor, forward: int | Tensor = 0, backward: int | Tensor = 0) -> None:
        """Count what was computed for the texts of these lanes, in tokens a lane (or `[b]` of each row; a lane may have
        several): the one place where cost is noted."""
        every = torch.zeros_like(slots)
        for table, tokens in (
            (self.forward_tokens, forward),
            (self.parts[:, PARTS.index(self.part)], forward),
            (self.backward_tokens, backward),
        ):
            table.index_add_(0, slots, every + tokens)

    def reserve(self) -> None:
        """Make the prefix storage now, and for good: `in_place` refers to it by address."""
        if self.decoder.blocks and self.keys is None:
            call, token = PrefixCall(causal=False), torch.zeros(1, 1, dtype=torch.long, device=self.device)
            with torch.no_grad():  # one token says what a layer's keys look like
                self.decoder.run(self.decoder.embed(token), token, call)
            self.keys, self.values = self._storage(call, 0), self._storage(call, 1)

    def in_place(self, slots: Tensor, lengths: Tensor) -> PrefixCall:
        """A fan-out over the reserved storage itself, up to `lengths [b]` in the rows `slots [b]`: nothing is copied or
        read back, so that what these tensors hold may change between two replays of a captured pass."""
        if not self.decoder.blocks:
            return PrefixCall(causal=False)
        return PrefixCall(False, self.keys, self.values, lengths, slots)

    def draft(self, slots: Tensor, ids: Tensor) -> Tensor:
        """K tokens in a row after each lane's prefix, causally: `[b, K] → [b, K, D]`."""
        step = torch.arange(ids.shape[1])
        positions = (self.length[slots][:, None] + step).clamp_max(self.decoder.max_length - 1)  # padding may overhang
        return self._forward(slots, self.embedded(ids), positions, self.call(slots, causal=True))

    def resume(self, passed: Passed) -> Tensor:
        """The states of one of several calls that went through one pass (`joint.py`); `commit` goes on from it."""
        self._pending = passed.call
        return passed.hidden

    def call(self, slots: Tensor, causal: bool, lengths: Tensor | None = None) -> PrefixCall:
        """What a pass over these lanes sees of their prefixes (or of the first `lengths [b]` tokens of those)."""
        call = PrefixCall(causal)
        if self.keys is None or self.values is None:
            return call
        lengths = self.length[slots] if lengths is None else lengths
        longest = int(lengths.max())
        # in their order they need no copy of the prefixes
        in_order = len(slots) == self.slots and bool((slots[1:] > slots[:-1]).all())
        if longest:
            call.keys = [k[:, :, :longest] for k in self.keys]
            call.values = [v[:, :, :longest] for v in self.values]
            call.lengths, at = sent(self.device, lengths, slots)
            call.slots = None if in_order else at
        return call

    def _forward(
        self, slots: Tensor, embeds: Tensor, positions: Tensor, call: PrefixCall, compute: str = "float32"
    ) -> Tensor:
        hidden, positions = None, sent_one(self.device, positions)
        if not embeds.requires_grad:
            programs = programs_of(self.decoder)
            hidden = (programs.draft if call.causal else programs.fan_out)(self.decoder, embeds, positions, call)
        if hidden is None:
            with torch.set_grad_enabled(embeds.requires_grad):
                hidden = self.decoder.run(embeds, positions, call, compute)
        self.charge(slots, forward=embeds.shape[1])
        self._pending = call
        return hidden

    def span(self, slots: Tensor, counts: Tensor, most: int) -> Span:
        """The next `counts [b]` positions of each lane, at most `most` of one."""
        if len(slots) == 1:  # as it lies
            lane, start, count = int(slots), int(self.length[slots]), int(counts)
            return Span((lane, slice(start, start + count)), (0, slice(count)), alone=True)
        at, step = (torch.arange(most) < counts[:, None]).nonzero(as_tuple=True)
        slot = slots[at]
        return Span((slot, self.length[slot] + step), (at, step))

    def rows(self, slots: Tensor, count: int) -> Tensor:
        """The next `count` target rows of each lane, `[b, count, D]`; past the end of a lane, its last again."""
        if len(slots) == 1 and (start := int(self.length[slots])) + count <= self.max_len:
            return self.targets[int(slots), start : start + count][None]
        position = (self.length[slots][:, None] + torch.arange(count)).clamp_max(self.max_len - 1)
        return picked(self.targets, slots[:, None], position)

    def commit(
        self,
        slots: Tensor,
        ids: Tensor,
        counts: Tensor,
        rows: Tensor,
        chosen: Tensor | None = None,
        keep: Tensor | None = None,
        span: Span | None = None,
    ) -> None:
        """Append to `slots [b]` the first `counts [b]` of `ids [b, K]`, re-using the KV of the call just made.

        rows `[b]`: the row of that call each lane was in; chosen `[b]`: after a fan-out, the column that won (K = 1).
        Lanes that are complete after this keep no KV, but for those to `keep [b]`. span: of the same slots and counts,
        where it is known.
        """
        if self._pending is None:
            raise RuntimeError("commit follows a draft or a fan_out")
        span, after = span or self.span(slots, counts, ids.shape[1]), self.length[slots] + counts
        goes_on = after < self.target_length[slots]
        goes_on = goes_on if keep is None else goes_on | keep
        kept = self._kept(span, goes_on, rows, chosen) if self.decoder.blocks else None
        if kept is not None:  # first, since it may run out of memory: then nothing has moved
            to, of = kept
            if self.keys is None or self.values is None:
                self.keys, self.values = self._storage(self._pending, 0), self._storage(self._pending, 1)
            to, of = (to[0], slice(None), to[1]), (of[0], slice(None), of[1])
            for layer in range(self.decoder.blocks):
                key, value = self._pending.own[layer]
                self.keys[layer][to] = key.detach()[of]
                self.values[layer][to] = value.detach()[of]
        self.ids[span.to] = told_one(ids)[span.of]
        self.length[slots] = after

    def _kept(
        self, span: Span, goes_on: Tensor, rows: Tensor, chosen: Tensor | None
    ) -> tuple[tuple[Any, Any], tuple[Any, Any]] | None:
        """Where the KV of a span is to be put and where in the call it is, of lanes that go on; None if none does."""
        if span.alone:
            if not bool(goes_on):
                return None
            column = span.of[1] if chosen is None else slice(int(chosen), int(chosen) + 1)
            return span.to, (int(rows), column)
        here = goes_on[span.of[0]].nonzero().flatten()
        if not len(here):
            return None
        at, step = span.of[0][here], span.of[1][here]
        of = rows[at], step if chosen is None else chosen[at]
        lane, position, row, column = sent(self.device, span.to[0][here], span.to[1][here], *of)
        return (lane, position), (row, column)

    def _storage(self, call: PrefixCall, part: int) -> list[Tensor]:
        shapes = [call.own[layer][part] for layer in range(self.decoder.blocks)]
        return [
            torch.zeros(self.slots, t.shape[1], self.max_len, t.shape[3], dtype=t.dtype, device=t.device)
            for t in shapes
        ]
