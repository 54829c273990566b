"""What a defence costs: how much worse the model goes on from the states that are given away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calls.turns import turns_of
from ..model.decoder import Decoder
from ..model.twin import body_of, find_blocks
from ..types import InputError, States
from .base import Defence


@dataclass(frozen=True)
class Utility:
    """Mean next-token loss in nats, of the model going on from the states as they are given away and as they were;
    tokens: how many were predicted."""

    loss: float
    undefended: float
    tokens: int

    @property
    def added(self) -> float:
        return self.loss - self.undefended


def utility_of(
    defence: Defence, decoder: Decoder, ids: Sequence[Sequence[int] | None], batch: Sequence[States], seed: int = 0
) -> Utility:
    """The utility of the states of texts `ids` (None for one that is not known, and left out) under a defence, of those
    tokens whose row before them is given away.

    Blocks behind the layer of the states, or only the head behind the last one, go on from them. Raises InputError
    where ids and states are not of the same texts.
    """
    loss, undefended, tokens = 0.0, 0.0, 0
    for index, (text, states) in enumerate(zip(ids, batch, strict=True)):
        if text is None:
            continue
        places = defence.kept(len(states), seed + index)
        given = defence.received(defence.apply(states, seed + index)).hidden
        before, after = next_token_losses(decoder, text, states.hidden), next_token_losses(decoder, text, given, places)
        seen = [place for place in places if place + 1 < len(text)]
        loss, undefended = loss + float(after.sum()), undefended + float(before[seen].sum())
        tokens += len(seen)
    count = max(1, tokens)
    return Utility(loss / count, undefended / count, tokens)


def next_token_losses(
    decoder: Decoder, ids: Sequence[int], rows: Tensor, places: Sequence[int] | None = None
) -> Tensor:
    """−log p `[n]` fp64 of the tokens behind the rows `[T', D]` of a text, by the model's own modules from there on.

    ids: the text; places: the positions of the rows in it, all of them where not said. The last token of a text has
    none behind it, and no loss. Raises InputError for other numbers of rows, and states that are read otherwise than
    they were captured.
    """
    places = [*range(len(rows))] if places is None else [*places]
    if len(places) != len(rows) or (places and places[-1] >= len(ids)):
        raise InputError(
            f"there are {len(rows)} rows of a text of {len(ids)} tokens, at {len(places)} positions, expected a row a "
            "position of the text"
        )
    if decoder.reading.name or decoder.reading.scale != 1 or decoder.reading.prefix:
        raise InputError(
            "these states are read otherwise than the model makes them (offset, centred, scaled, behind a prefix), "
            "expected states as captured: blocks cannot go on from others"
        )
    predicted = [place for place in places if place + 1 < len(ids)]
    if not predicted:
        return torch.zeros(0, dtype=torch.float64)
    device = decoder.device
    given: dict[str, Tensor] = {"input_ids": torch.tensor([list(ids)], device=device)[:, places]}
    if places != [*range(len(places))]:
        given["position_ids"] = torch.tensor([places], device=device)
    given_rows = rows.to(device, decoder.dtype)[None]
    with turns_of(decoder.model), torch.no_grad(), _going_on_from(decoder, given_rows):
        logits = decoder.model(**given, use_cache=False).logits[0, : len(predicted)]
    wanted = torch.tensor([ids[place + 1] for place in predicted], device=logits.device)
    return nn.functional.cross_entropy(logits.float(), wanted, reduction="none").double().cpu()


@torch.no_grad()
def losses_of_texts(
    decoder: Decoder, ids: Sequence[Sequence[int]], batch: Sequence[Tensor], batch_size: int = 64
) -> list[Tensor]:
    """`next_token_losses` of several texts, all of whose rows are there: those of equal length share a pass."""
    found: dict[int, Tensor] = {}
    for length in {*map(len, ids)}:
        every = [i for i, text in enumerate(ids) if len(text) == length]
        for start in range(0, len(every), batch_size):
            which = every[start : start + batch_size]
            if length < 2 or len(which) == 1:  # and whatever is wrong is said there
                found |= {i: next_token_losses(decoder, ids[i], batch[i]) for i in which}
                continue
            tokens = torch.tensor([list(ids[i]) for i in which], device=decoder.device)
            rows = torch.stack([batch[i] for i in which]).to(decoder.device, decoder.dtype)
            with _going_on_from(decoder, rows):
                logits = decoder.model(input_ids=tokens, use_cache=False).logits[:, :-1]
            losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
            found.update(zip(which, losses.double().cpu(), strict=True))
    return [found[i] for i in range(len(ids))]


@contextmanager
def _going_on_from(decoder: Decoder, rows: Tensor) -> Iterator[None]:
    """While this is open the model's states of the decoder's layer are these rows `[b, T, D]`, whatever came before."""
    layer, body = decoder.layer, body_of(decoder.model)

    def last(_module, _args, out):
        out["last_hidden_state"] = rows.to(out.last_hidden_state.device)
        return out

    def block(_module, _args, out):
        states = rows.to((out[0] if isinstance(out, tuple) else out).device)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    def first(_module, args, named):
        if args:
            return (rows.to(args[0].device), *args[1:]), named
        return args, {**named, "hidden_states": rows.to(named["hidden_states"].device)}

    blocks = find_blocks(body, layer.blocks)[1]
    if layer.normed:
        handle = body.register_forward_hook(last)
    elif layer.depth:
        handle = blocks[layer.depth - 1].register_forward_hook(block)
    else:
        handle = blocks[0].register_forward_pre_hook(first, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
