"""Lenses of the tests' models, states to read with them, and how far from float64 they may read."""

from __future__ import annotations

import torch
from torch import Tensor

from invert_fast import Inverter
from invert_fast.lens import LinearLens, store

from ..families import texts
from ..limits import limit


def lens_of(inv: Inverter, seed: int = 0) -> LinearLens:
    return store.linear_lens(inv.decoder, inv.vocabulary, seed)


def captured(inv: Inverter, *lengths: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    ids = torch.tensor(texts(*lengths, seed=seed))
    return ids, inv.decoder.capture(ids)


def exact_proxies(lens: LinearLens, states: Tensor, sized: bool = False) -> Tensor:
    """The proxies `[b, T, D_e]` of a linear lens in float64; sized: their scale, for `limits`."""
    states, first, rest = (t.double() for t in (states, lens.parts["first"].project, lens.parts["rest"].project))
    if sized:
        states, first, rest = states.abs(), first.abs(), rest.abs()
    one = torch.ones(*states.shape[:-1], 1, dtype=torch.float64)
    later = torch.cat([states[:, 1:], states[:, :-1], one[:, 1:]], -1) @ rest
    return torch.cat([torch.cat([states[:, :1], one[:, :1]], -1) @ first, later], 1)


def roundings(lens: LinearLens) -> int:
    """Of a proxy; a score has as many more as an embedding has numbers."""
    return len(lens.parts["rest"].project) + 1


def same_drafts(lens: LinearLens, states: Tensor, one: Tensor, other: Tensor) -> None:
    """Two drafts `[b, T]` name the same tokens, but for those whose scores are within rounding of each other."""
    __tracebackhide__ = True
    table = torch.cat([*lens.vocabulary.embedding.blocks()]).double()
    bias = torch.stack([lens.parts["first"].bias, *[lens.parts["rest"].bias] * (states.shape[1] - 1)]).double()
    scores = exact_proxies(lens, states) @ table.T + bias
    sizes = exact_proxies(lens, states, sized=True) @ table.abs().T + bias.abs()
    mine, theirs = ((scores.gather(2, ids[..., None]), sizes.gather(2, ids[..., None])) for ids in (one, other))
    allowed = limit(mine[0], scale=mine[1] + theirs[1], terms=roundings(lens) + table.shape[1])
    assert ((mine[0] - theirs[0]).abs() <= allowed).all()
