"""How far the states of a text are from the rows at hand, under every hypothesis that a pass of the model can tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.reading import UNIT, Reading
from ..model.twin import body_of, find_blocks
from .hypotheses import Hypothesis

_WAYS = tuple(Reading(centered=c, scale=s) for c, s in itertools.product((False, True), (1.0, UNIT)))
_SECOND = 1  # of the nearest rows, which one counts: a fit that is no accident shows before the first wrong token
_ROUND = 1e-5  # relative: a factor so near to a well-known one is that
_TOKENS = 4096  # of one pass over many offsets


@dataclass(frozen=True)
class Fit:
    """Residuals `[T]`: relative distance of the rows from the model's states, as both are compared; score: that of the
    second nearest row."""

    hypothesis: Hypothesis
    residuals: Tensor

    @property
    def score(self) -> float:
        return float(self.residuals.sort().values[: _SECOND + 1][-1])


@torch.no_grad()
def states_everywhere(decoder: Decoder, ids: Tensor, offsets: Sequence[int]) -> dict[str, Tensor]:
    """States `[B, T, D]` of every layer by its name, of texts `ids [B, T]` that begin at these positions, by the
    model's own forward pass. Layers of another width than the decoder's, or of several streams, are left out."""
    model, blocks = decoder.model, decoder.layer.blocks
    arguments = {}
    if any(offsets):
        step = torch.arange(ids.shape[1], device=ids.device)
        arguments["position_ids"] = torch.tensor(offsets, device=ids.device)[:, None] + step
    raw: list[Tensor] = []

    def keep(_module, _args, out):
        raw.append(out[0] if isinstance(out, tuple) else out)

    handle = find_blocks(body_of(model), blocks)[1][-1].register_forward_hook(keep)
    try:
        found = body_of(model)(input_ids=ids, use_cache=False, output_hidden_states=True, **arguments)
    finally:
        handle.remove()
    places = {
        "final_norm": found.last_hidden_state,
        f"block:{blocks - 1}": raw[-1],
        "embeddings": found.hidden_states[0],
    }
    places |= {f"block:{k}": found.hidden_states[k + 1] for k in range(blocks - 1)}
    return {name: states.float() for name, states in places.items() if states.shape[2:] == (decoder.width,)}


def fits(decoder: Decoder, rows: Tensor, text: Sequence[int], base: Reading) -> Iterator[Fit]:
    """Every layer and every way of reading `rows [T, D]`, where `text` (as many tokens as rows) stood there behind the
    prefix of `base`, and the first row at its position."""
    ids = torch.tensor([[*base.prefix, *text]], device=decoder.device)
    for layer, states in states_everywhere(decoder, ids, [base.position_offset]).items():
        yield from _read(rows, states[0, len(base.prefix) :], layer, base)


def best_offsets(decoder: Decoder, rows: Tensor, text: Sequence[int], offsets: Sequence[int], count: int) -> list[int]:
    """The `count` of the positions at which the text may have begun that come nearest, at whatever layer. Compared is
    what every way of reading leaves of a row: what fits in any of them fits so."""
    least = Reading(centered=True, scale=UNIT)
    theirs, ids = least.seen(rows), torch.tensor([list(text)], device=decoder.device)
    scores = []
    for part in torch.tensor(offsets).split(max(1, _TOKENS // max(1, len(rows)))):
        places = states_everywhere(decoder, ids.expand(len(part), -1), part.tolist()).values()
        off = torch.stack([(least.seen(states) - theirs).norm(dim=-1) for states in places])  # [layers, offsets, T]
        scores.append(off.sort(-1).values[..., : _SECOND + 1][..., -1].amin(0))
    return [offsets[i] for i in torch.cat(scores).topk(min(count, len(offsets)), largest=False).indices.tolist()]


def _read(rows: Tensor, states: Tensor, layer: str, base: Reading) -> Iterator[Fit]:
    for way in _WAYS:
        yield _fit(rows, states, layer, replace(base, centered=way.centered, scale=way.scale))
    for centered in (False, True):
        view = Reading(centered=centered)
        scale = factor(view.seen(rows), view.seen(states))
        if scale is not None:
            yield _fit(rows, states, layer, replace(base, centered=centered, scale=scale))


def _fit(rows: Tensor, states: Tensor, layer: str, reading: Reading) -> Fit:
    theirs, ours = reading.rows(rows), reading.seen(states)
    off = (theirs - ours).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)
    return Fit(Hypothesis(layer, reading), off.nan_to_num(torch.inf))


def factor(rows: Tensor, states: Tensor) -> float | None:
    """What `rows [T, D]` are of `states [T, D]`: the median over rows of the factor that fits best, or a well-known
    number where it is that; None where it is none (nothing that points the same way), or 1."""
    rows, states = rows.double(), states.double()
    each = (rows * states).sum(-1) / states.square().sum(-1).clamp_min(1e-60)
    found = float(each.median())
    if not 0 < found < math.inf:
        return None
    width = rows.shape[-1]
    known = (1.0, math.sqrt(width), 1 / math.sqrt(width), float(width), 1 / width, float(round(found)))
    for number in (*known, 2.0 ** round(math.log2(found))):
        if number > 0 and abs(found - number) <= _ROUND * number:
            return None if number == 1 else number
    return found


def shifts_show(decoder: Decoder, text: Sequence[int]) -> bool:
    """Whether states tell at which position a text began: absolute positions do, rotations do not."""
    ids = torch.tensor([list(text)] * 2, device=decoder.device)
    states = states_everywhere(decoder, ids, [0, 1])[decoder.layer.name]
    return float((states[0] - states[1]).norm() / states[0].norm().clamp_min(1e-30)) > 1e-3
