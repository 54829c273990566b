"""A loaded model as callers have it: a `Decoder`, or an `Inverter` around one."""

from __future__ import annotations

from typing import Protocol

from ..model.decoder import Decoder


class HasDecoder(Protocol):
    @property
    def decoder(self) -> Decoder: ...


def decoder_of(model: Decoder | HasDecoder) -> Decoder:
    return model if isinstance(model, Decoder) else model.decoder
