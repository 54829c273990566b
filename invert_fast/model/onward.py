"""What states of an inner layer lead to: the blocks behind it, run from the captured states themselves.

Teacher forcing needs no tokens here. The states of a whole text at a layer are all that the blocks behind it ever see,
so running those says what the model expects next at every position before a single token is known: the prior that is
free at the last layer, for a part of a pass. Where tokens stand in words of several, inner states tell of the word and
hardly of its last token; the model that wrote the first part is mostly sure of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..calls.interrupts import raise_interrupt
from . import attention
from .prefix import PrefixCall
from .trial import FAILS, OFF, SHORT, text
from .twin import body_of, find_blocks, structural_twin

if TYPE_CHECKING:
    from .decoder import Decoder

log = logging.getLogger("invert_fast")

_AT_ONCE = 4096  # tokens of one call


class Onward:
    """The blocks behind the layer of a decoder that runs in our way. Raises one of FAILS where a family does not let
    them be run alone."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        count, depth = decoder.layer.blocks, decoder.layer.depth
        self.body = structural_twin(decoder.model, count, True, attention.NAME)
        _, blocks = find_blocks(self.body, count)
        shapes = _outputs(self.body, blocks)
        skipped = [_Skipped(blocks[index], shapes[index]) for index in range(depth)]
        for index, stands in enumerate(skipped):
            blocks[index] = stands
        self._last = skipped[-1]

    @property
    def tokens(self) -> float:
        """What running on costs a token, in tokens of a pass up to the layer."""
        return (self.decoder.layer.blocks - self.decoder.layer.depth) / self.decoder.layer.depth

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """States `[B, T, D]` of whole texts → what the head takes, `[B, T, D]` in the model's precision."""
        if not hidden.numel():
            return hidden.to(self.decoder.dtype)
        rows = max(1, _AT_ONCE // hidden.shape[1])
        return torch.cat([self._run(part) for part in hidden.split(rows)])

    def _run(self, hidden: Tensor) -> Tensor:
        B, T, _ = hidden.shape
        offset = self.decoder.reading.position_offset
        positions = torch.arange(offset, offset + T, device=hidden.device).expand(B, T)
        width, dtype = self.decoder.embedding.shape[1], self.decoder.dtype
        nothing = torch.zeros(B, T, width, dtype=dtype, device=hidden.device)
        self._last.gives = hidden.to(dtype)
        try:
            with attention.attending(PrefixCall(causal=True)):
                out = self.body(inputs_embeds=nothing, position_ids=positions, use_cache=False)
        finally:
            self._last.gives = None
        return out.last_hidden_state


class _Skipped(nn.Module):
    """Stands where a block stood: passes on what it gets, or what it is told to give, in the form of that block. Of the
    block it has what the body may ask it for, such as how it attends, and none of its tensors."""

    def __init__(self, block: nn.Module, others: int | None):
        super().__init__()
        self.__dict__["_block"], self._others = block, others
        self.gives: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        out = hidden_states if self.gives is None else self.gives
        return out if self._others is None else (out, *[None] * self._others)


def _outputs(body: nn.Module, blocks: nn.ModuleList) -> list[int | None]:
    """How many more things each block gives beside its states; None: it gives no tuple."""
    found: list[int | None] = []
    handles = [
        block.register_forward_hook(lambda _m, _i, out: found.append(len(out) - 1 if isinstance(out, tuple) else None))
        for block in blocks
    ]
    device = next(body.parameters()).device
    try:
        with torch.no_grad(), attention.attending(PrefixCall(causal=True)):
            body(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != len(blocks):
        raise ValueError(f"{len(found)} of {len(blocks)} blocks were called once")
    return found


@torch.no_grad()
def onward_of(decoder: Decoder) -> Onward | None:
    """The blocks behind a decoder's layer, tried on a short text; None where there are none, where states are read so
    that something of them is missing, and where they do not give the states of the model's own pass."""
    layer, reading = decoder.layer, decoder.reading
    if decoder.own is not None or not 0 < layer.depth < layer.blocks or reading.kind or reading.prefix:
        return None
    try:
        onward = Onward(decoder)
        ids = text(decoder)[:SHORT][None]
        found = onward(decoder.states(ids))[0].double()
        begun = {}
        if reading.position_offset:
            begun["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None] + reading.position_offset
        own = body_of(decoder.model)(input_ids=ids, use_cache=False, **begun).last_hidden_state[0].double()
        off = float(((found - own).norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-30)).max())
    except FAILS as error:
        raise_interrupt(error)
        log.info("the blocks behind %s do not run alone: %s", layer.name, " ".join(str(error).split())[:200])
        return None
    if not off <= OFF[decoder.dtype]:
        log.info("the blocks behind %s, run alone, are %.1e off the model's own pass", layer.name, off)
        return None
    return onward
