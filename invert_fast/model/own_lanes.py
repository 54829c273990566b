"""Lanes of a model that runs by its own forward pass: the same questions, asked in the model's own way.

A draft runs the whole text so far again. A fan-out goes on from what the model keeps of each prefix, a copy for each
candidate, where that can be done; else it runs whole texts too. Slower, and as exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import InputError
from .decoder import Decoder
from .gradient import loss_and_gradient
from .lanes import Held, Lanes
from .own_pass import OwnPass, bytes_of, joined, picked
from .prefix import PrefixCall
from .transfer import sent, sent_one, told_one

_COPIES = 1 << 29  # bytes of copies of what a model keeps, in one call
_MANY = 4  # continuations a place, on average, from which on texts are gone through for them
_STEPS = 4  # tokens that a kept prefix is gone on by one at a time; of more it is made anew


def lanes_of(decoder: Decoder, slots: int, max_len: int) -> Lanes:
    """Lanes that run as this decoder does."""
    return Lanes(decoder, slots, max_len) if decoder.own is None else OwnLanes(decoder, decoder.own, slots, max_len)


class OwnLanes(Lanes):
    """As `Lanes`. What is computed of a prefix again is charged to the text that it is computed for."""

    def __init__(self, decoder: Decoder, own: OwnPass, slots: int, max_len: int):
        super().__init__(decoder, slots, max_len)
        self.own = own
        self.at_once = 1 << 16
        self._prefixes: dict[int, tuple[Tensor, Any]] = {}  # of a lane: which tokens, and what is kept of them
        self._rolled: tuple[Tensor, Any] = self.ids[:0], None  # of the lanes of the last call of one token each

    def release(self, slots: Tensor) -> None:
        super().release(slots)
        for slot in slots.tolist():
            self._prefixes.pop(slot, None)

    @torch.no_grad()
    def draft(self, slots: Tensor, ids: Tensor) -> Tensor:
        self._pending = PrefixCall(causal=True)
        lengths, ids = self.length[slots], told_one(ids)
        return self._next(slots, lengths, ids) if ids.shape[1] == 1 else self._whole(slots, lengths, ids)

    @torch.no_grad()
    def fan_out(self, slots: Tensor, ids: Tensor) -> Tensor:
        self._pending = PrefixCall(causal=False)
        lengths, ids = self.length[slots], told_one(ids)
        return self._next(slots, lengths, ids) if ids.shape[1] == 1 else self._fan_out(slots, lengths, ids)

    @torch.no_grad()
    def fan_out_at(self, slots: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        return self._fan_out(slots, lengths, told_one(ids))

    def fan_out_of(self, slots: Tensor, embeds: Tensor) -> Tensor:
        raise NotImplementedError("a model that runs by its own forward pass is asked for tokens, or for gradients")

    def _next(self, slots: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        """States of the next token `[b, 1]` of each lane: where all stand at one length, as texts are written, what was
        kept at the last such call is gone on from."""
        length = int(lengths.max())
        if not self.own.keeps or length != int(lengths.min()):
            return self._whole(slots, lengths, ids)
        texts, (had, kept) = torch.cat([self.ids[slots, :length], ids], 1), self._rolled
        self._rolled = texts[:0], None
        if kept is not None and torch.equal(had, texts[:, :length]):
            states, kept = self.own.step(kept, self._sent(ids))
        else:
            parts = texts.split(max(1, self.own.at_once // (length + 1)))
            begun, kept = zip(*(self.own.begin(self._sent(part)) for part in parts), strict=True)
            states, kept = torch.cat(begun), joined(list(kept), [*map(len, parts)])
        self.charge(slots, forward=length + 1 if states.shape[1] > 1 else 1)
        self._rolled = texts, kept
        return states[:, -1:]

    def _fan_out(self, slots: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        count = ids.shape[1]
        if count == 1 and self.own.keeps and len(slots) > _MANY * len(lengths.unique()):
            return self._stepwise(slots, lengths, ids)
        if count == 1 or not self.own.keeps:
            each = torch.arange(len(slots)).repeat_interleave(count)
            return self._whole(slots[each], lengths[each], ids.reshape(-1, 1)).view(*ids.shape, -1)
        found, at = self._empty(*ids.shape), lengths.tolist()
        for length in sorted(set(at)):
            rows = [row for row, own in enumerate(at) if own == length]
            asked = self._sent(ids[rows].reshape(-1, 1))
            if length:
                kept = joined([self._prefix(int(slots[row]), length) for row in rows], [1] * len(rows))
                each = self._sent(torch.arange(len(rows)).repeat_interleave(count))
                states = self._behind(kept, len(rows), each, asked)
            else:
                states = self.own.states(asked)
            found[self._sent(torch.tensor(rows))] = states.view(len(rows), count, -1)
        self.charge(slots, forward=count)
        return found

    def _behind(self, kept: Any, batch: int, rows: Tensor, ids: Tensor) -> Tensor:
        """States of tokens `ids [n, 1]` behind `rows [n]` of what is kept of a batch; not all copies at once."""
        most = max(1, min(self.own.at_once, _COPIES * batch // max(1, bytes_of(kept))))
        parts = zip(rows.split(most), ids.split(most), strict=True)
        return torch.cat([self.own.step(picked(kept, row, batch), part)[0] for row, part in parts])

    def _stepwise(self, slots: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        """One continuation `[n, 1]` each at many places of the same texts: these are gone through once, side by side,
        and copies of what is kept at a place go on with what is asked for there."""
        texts, row = slots.unique(return_inverse=True)
        found, kept, longest = self._empty(*ids.shape), None, int(lengths.max())
        for length in range(longest + 1):
            here = (lengths == length).nonzero().flatten()
            if len(here):
                at, of, asked = sent(self.device, here, row[here], ids[here])
                found[at] = self.own.states(asked) if kept is None else self._behind(kept, len(texts), of, asked)
            if length < longest:
                token = self._sent(self.ids[texts, length][:, None])
                _, kept = self.own.begin(token) if kept is None else self.own.step(kept, token)
        self.charge(slots, forward=1)
        self.charge(texts, forward=longest)
        return found

    def _prefix(self, slot: int, length: int) -> Any:
        """What the model keeps of the first `length` tokens of a lane; it stays as it is."""
        ids = self.ids[slot, :length]
        had, kept = self._prefixes.pop(slot, (ids[:0], None))  # of no use any more where a step does not end
        behind = length - len(had)
        if kept is None or not 0 <= behind <= _STEPS or not torch.equal(ids[: len(had)], had):
            _, kept = self.own.begin(self._sent(ids[None]))
            behind = 0
            self.charge(ids.new_tensor([slot]), forward=length)
        for token in ids[length - behind :]:
            _, kept = self.own.step(kept, self._sent(token.view(1, 1)))
            self.charge(ids.new_tensor([slot]), forward=1)
        self._prefixes[slot] = ids.clone(), kept
        return kept

    def _whole(self, slots: Tensor, lengths: Tensor, ids: Tensor) -> Tensor:
        """States of `ids [b, K]` after the first `lengths [b]` tokens of these lanes, as whole texts: `[b, K, D]`.
        Those of a call are as long as the longest: what stands behind a shorter one is of no account to it."""
        found, step = self._empty(*ids.shape), torch.arange(ids.shape[1])
        order, most = lengths.argsort(), self.decoder.max_length
        for part in order.split(max(1, self.own.at_once // (int(lengths.max()) + len(step)))):
            length = int(lengths[part].max())
            at = lengths[part, None] + step
            text = ids.new_zeros(len(part), length + len(step))
            text[:, :length] = self.ids[slots[part], :length]
            text.scatter_(1, at, ids[part])
            states = self.own.states(self._sent(text[:, :most]))
            rows, here, at = sent(self.device, torch.arange(len(part)), part, at.clamp_max(most - 1))
            found[here] = states[rows[:, None], at]
        self.charge(slots, forward=lengths + len(step))
        return found

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, self.decoder.width, dtype=self.decoder.dtype, device=self.device)

    def _sent(self, table: Tensor) -> Tensor:
        return sent_one(self.device, table)

    def _kept(self, *_) -> None:
        """There is no KV of ours to be kept."""

    def hold(
        self, slots: Tensor, dtype: torch.dtype | None = None, compute: str = "float32", *, once: bool = False
    ) -> Held:
        if dtype not in (None, self.decoder.dtype):
            raise InputError(
                f"search_dtype {str(dtype).removeprefix('torch.')} with a model that runs by its own forward pass, "
                "expected the model's own: leave it out, or load the model in that precision"
            )
        positions = self._sent(self.length[slots])[:, None]
        return Held(PrefixCall(causal=False), positions, self.decoder.dtype, compute)

    def gradient(self, slots: Tensor, value: Tensor, target: Tensor, held: Held) -> tuple[Tensor, Tensor]:
        lengths, rows = self.length[slots], torch.arange(len(slots), device=self.device)
        at, prefix = held.positions[:, 0], self.embedded(self.ids[slots, : int(lengths.max()) + 1])

        def run(embeds: Tensor) -> Tensor:
            whole = prefix.clone()
            whole[rows, at] = embeds[:, 0]
            return self.own.states_of(whole)[rows, at][:, None]

        self.charge(slots, forward=lengths + 1, backward=lengths + 1)
        return loss_and_gradient(run, value, target, self.decoder.dtype, held.compute)
