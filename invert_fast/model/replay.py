"""Which passes over lanes run as recorded programs (`program.py`): those of a kind that is made often, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..ops import draft_attention, fan_out_attention, outside
from .decoder import Decoder
from .gradient import loss_and_gradient
from .prefix import PrefixCall

if TYPE_CHECKING:
    from .program import Pass

_MANY = 2048  # tokens in a row, of all lanes: what modules cost beside them does not matter
WARM_UP = 64  # calls of a kind before it is recorded, which takes as long as about 150
_SMALL = 20_000_000  # parameters; of a larger model a call spends less of its time beside its products: it pays later


class Programs:
    """The programs of one decoder's passes: recorded when a kind of call has been made often enough to be worth it.

    Each method answers None where there is no program (yet): the caller then runs the twin.
    """

    def __init__(self):
        self._calls: dict[tuple[str, bool], int] = {}
        self._made: dict[tuple[str, bool], Pass | None] = {}

    def gradient(
        self, decoder: Decoder, embeds: Tensor, positions: Tensor, target: Tensor, call: PrefixCall
    ) -> tuple[Tensor, Tensor] | None:
        """MSE(f(e), h) `[B]` and its gradient `[B, D_e]` at `embeds [B, D_e]`, for targets `[B, D]`."""
        program = self._program(decoder, "gradient", embeds, call)
        if program is None:
            return None
        loss, grad = program(embeds[:, None], positions, target, *_prefix(call, len(embeds)))
        return loss, grad

    def fan_out(self, decoder: Decoder, embeds: Tensor, positions: Tensor, call: PrefixCall) -> Tensor | None:
        """As `Decoder.run` for a fan-out of a few tokens a lane, without gradient; KV goes to `call`."""
        if embeds.shape[1] > fan_out_attention.FEW:
            return None
        return self._states(decoder, "fan_out", embeds, positions, call)

    def draft(self, decoder: Decoder, embeds: Tensor, positions: Tensor, call: PrefixCall) -> Tensor | None:
        """As `Decoder.run` for tokens in a row, without gradient; KV goes to `call`."""
        if not draft_attention.available() or embeds.shape[0] * embeds.shape[1] > _MANY:
            return None
        return self._states(decoder, "draft", embeds, positions, call)

    def _states(
        self, decoder: Decoder, kind: str, embeds: Tensor, positions: Tensor, call: PrefixCall
    ) -> Tensor | None:
        program = self._program(decoder, kind, embeds, call)
        if program is None:
            return None
        hidden, *own = program(embeds, positions, *_prefix(call, len(embeds)))
        call.own = dict(enumerate(zip(own[::2], own[1::2], strict=True)))
        return hidden

    def _program(self, decoder: Decoder, kind: str, embeds: Tensor, call: PrefixCall) -> Pass | None:
        if (
            not fan_out_attention.available()
            or outside.serves_passes("cpu")
            or embeds.device.type != "cpu"
            or not embeds.dtype == decoder.dtype == torch.float32
        ):
            return None
        key = (kind, call.keys is not None)
        if key not in self._made:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARM_UP * max(1.0, decoder.parameters / _SMALL) or not decoder.blocks:
                return None
            self._made[key] = _recorded(decoder, kind, call)
        return self._made[key]


_of: WeakKeyDictionary[Decoder, Programs] = WeakKeyDictionary()


def programs_of(decoder: Decoder) -> Programs:
    """Those of this decoder: kept as long as it is, by whomever its lanes are made."""
    if decoder not in _of:
        _of[decoder] = Programs()
    return _of[decoder]


def _recorded(decoder: Decoder, kind: str, call: PrefixCall) -> Pass | None:
    from .program import record  # brings the tracer of PyTorch along, which most runs never need

    if kind == "gradient":
        run, tokens = partial(_gradient, decoder), (1,)
    else:
        run, tokens = partial(_run, decoder, kind == "draft"), None
    with torch.no_grad():
        return record(run, lambda B, N: _example(decoder, kind, B, N, call), tokens)


def _gradient(
    decoder: Decoder, embeds: Tensor, positions: Tensor, target: Tensor, *prefix: Tensor
) -> tuple[Tensor, ...]:
    call = _call(decoder, prefix)
    return loss_and_gradient(lambda e: decoder.run(e, positions, call), embeds[:, 0], target, decoder.dtype)


def _run(decoder: Decoder, causal: bool, embeds: Tensor, positions: Tensor, *prefix: Tensor) -> tuple[Tensor, ...]:
    call = _call(decoder, prefix, causal)
    with torch.no_grad():
        hidden = decoder.run(embeds, positions, call)
    return (hidden, *(t for layer in range(decoder.blocks) for t in call.own[layer]))


def _call(decoder: Decoder, prefix: Sequence[Tensor], causal: bool = False) -> PrefixCall:
    if not prefix:
        return PrefixCall(causal)
    lengths, slots, *tables = prefix
    return PrefixCall(causal, tables[: decoder.blocks], tables[decoder.blocks :], lengths, slots)


def _example(decoder: Decoder, kind: str, B: int, N: int, call: PrefixCall) -> list[Tensor]:
    """Arguments for a recording or a check: rows of the embedding matrix, at different positions."""
    rows = torch.arange(B * N) * 7 % decoder.usable_ids
    longest = 0 if call.keys is None else call.keys[0].shape[2]
    lengths = torch.arange(B) % (longest + 1)
    positions = lengths[:, None] + (torch.arange(N) if kind == "draft" else torch.zeros(N, dtype=torch.long))
    given = [decoder.embed(rows.view(B, N)), positions.clamp_max(decoder.max_length - 1)]
    if kind == "gradient":
        given.append(torch.linspace(-1, 1, B * decoder.width).view(B, -1))
    if call.keys is None or call.values is None:
        return given
    tables = [t[:1, :, :longest].expand(B, -1, -1, -1).contiguous() for t in (*call.keys, *call.values)]
    return [*given, lengths, torch.arange(B).flip(0).contiguous(), *tables]


def _prefix(call: PrefixCall, lanes: int) -> list[Tensor]:
    if call.keys is None or call.values is None or call.lengths is None:
        return []
    return [call.lengths, torch.arange(lanes) if call.slots is None else call.slots, *call.keys, *call.values]
