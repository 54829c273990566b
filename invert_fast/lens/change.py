"""How the state of a position changes with its token, in one context: what is expected of tokens that were not tried.

    f(v) − f(u) = M (e_v − e_u) + ε,   ε ~ N(0, ‖e_v − e_u‖² R)

by least squares over pairs of tokens in the same context. Once u was tried and its state f(u) is known, a noisy state
h = f(v) + n of deviation σ has the density N(h; f(u) + M (e_v − e_u), ‖e_v − e_u‖² R + σ²I) were the token v. With
R = U diag(ρ) Uᵀ that is a weighted distance in the directions U, for any σ. The change lens of `linear.py` only orders
candidates; here it is a density, to be compared with those of tokens that were tried.
"""

from __future__ import annotations

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..model.decoder import Decoder
from ..model.own_lanes import lanes_of
from ..model.samples import sample_texts
from ..model.transfer import sent
from ..model.vocabulary import Vocabulary
from ..storage import cache
from .base import Lens
from .files import read_or_warn, whole_tensor
from .normal_equations import NormalEquations

_FORMAT = "change-2"
_TEXTS, _LENGTH, _LARGE = 96, 32, 1 << 28  # texts that are asked about; fewer of a large model, by its parameters
_SCORES_AT_ONCE = 1 << 21
_STEPS = 4  # of distances of rows, down to an eighth of the largest


class ChangeModel:
    """map `[D_e, D]`: M in the directions U `[D, D]`; variance `[D]`: ρ."""

    def __init__(self, vocabulary: Vocabulary, directions: Tensor, variance: Tensor, change: Tensor):
        self.vocabulary, self.directions, self.variance, self.change = vocabulary, directions, variance, change
        self._rows: Tensor | None = None
        self._squared: Tensor | None = None
        self._lengths: Tensor | None = None

    def rows(self, ids: Tensor | None = None) -> Tensor:
        """M e_v of tokens `ids [...]`, or (kept) of all: `[..., D]` in the directions U."""
        if ids is not None:
            return self.vocabulary.embedding[ids] @ self.change
        if self._rows is None:
            self._rows = torch.cat([part @ self.change for part in self.vocabulary.embedding.blocks()])
        return self._rows

    def log_density(self, away: Tensor, token: Tensor, deviation: Tensor, ids: Tensor | None = None) -> Tensor:
        """log p(h | v) without the constant that `Noise.log_density` leaves out too, of h that is `away [n, D]` from
        the state of `token [n]`, with noise of `deviation [n]`: for all v, `[n, V]`, or for `ids [n, C]`. Distances of
        rows are taken in a few steps of a factor of four, so that all v of a step share a product."""
        place, rows = away @ self.directions + self.rows(token), self.rows(None if ids is None else ids.clamp_min(0))
        apart = self._apart(token, ids)
        largest, found = apart.amax(-1, keepdim=True).clamp_min(1e-30), torch.empty(0)
        for step in range(_STEPS):
            scale = largest * 4.0**-step
            variance = scale * self.variance + deviation.square()[:, None]
            weight = 1 / variance
            if ids is None:
                across = (weight * place) @ rows.T - 0.5 * weight @ self._squares().T
            else:
                across = ((place[:, None] - 0.5 * rows) * rows * weight[:, None]).sum(-1)
            value = across - 0.5 * ((place.square() * weight).sum(-1) + variance.log().sum(-1))[:, None]
            found = torch.where(apart < 2 * scale, value, found) if step else value
        return found

    def _apart(self, token: Tensor, ids: Tensor | None) -> Tensor:
        """‖e_v − e_u‖² of the rows of `token [n]` and of all tokens, `[n, V]`, or of `ids [n, C]`."""
        embedding = self.vocabulary.embedding
        own = embedding[token]
        if ids is not None:
            return (embedding[ids.clamp_min(0)] - own[:, None]).square().sum(-1)
        if self._lengths is None:
            self._lengths = torch.cat([part.square().sum(-1) for part in embedding.blocks()])
        return (own.square().sum(-1, keepdim=True) - 2 * embedding.scores(own, -0.5 * self._lengths)).clamp_min(0)

    def _squares(self) -> Tensor:
        if self._squared is None:
            self._squared = self.rows().square()
        return self._squared


def change_model(decoder: Decoder, vocabulary: Vocabulary, lens: Lens, seed: int = 0) -> ChangeModel:
    """Fitted now, in seconds, or read from the cache folder."""
    name = cache.key(decoder.identity, _FORMAT, str(seed), lens.kind) + ".safetensors"
    out, width = vocabulary.embedding.shape[1], decoder.width

    def read(path) -> ChangeModel:
        with safe_open(path, framework="pt", device=str(decoder.device)) as file:
            shapes = {"directions": (width, width), "variance": (width,), "change": (out, width)}
            return ChangeModel(vocabulary, *(whole_tensor(file, key, shape) for key, shape in shapes.items()))

    found = read_or_warn(cache.path(name), read, "it is fitted again")
    if found is None:
        found = _fitted(decoder, vocabulary, lens, seed)
        tensors = {key: getattr(found, key).contiguous() for key in ("directions", "variance", "change")}
        cache.write(name, save(tensors))
    return found


@torch.no_grad()
def _fitted(decoder: Decoder, vocabulary: Vocabulary, lens: Lens, seed: int) -> ChangeModel:
    """Pairs are the token that stands in a context, and two others: what the lens would take next, and what the model
    itself would have gone on with (a random token where that is not known)."""
    length = min(_LENGTH, decoder.max_length)
    count = _TEXTS if decoder.parameters < _LARGE or decoder.device.type == "cuda" else _TEXTS // 3
    ids = sample_texts(decoder, vocabulary.allowed, count, length, seed)
    lanes, every = lanes_of(decoder, count, length), torch.arange(count)
    lanes.target_length[:] = length
    states = lanes.draft(every, ids).float()
    lanes.commit(every, ids, torch.full_like(every, length), every, keep=torch.ones_like(every, dtype=torch.bool))
    proxies, sums = lens.proxies(states), NormalEquations(vocabulary.embedding.shape[1], decoder.width, 0, ids.device)
    start = 1 if length > 1 else 0
    slots = every.repeat_interleave(length - start)
    positions = torch.arange(start, length).repeat(count)
    generator, tokens = torch.Generator().manual_seed(seed), vocabulary.allowed.nonzero().flatten()
    rows = max(1, min(lanes.at_once, _SCORES_AT_ONCE // vocabulary.size))
    for lane, place in zip(slots.split(rows), positions.split(rows), strict=True):
        slot, position = sent(ids.device, lane, place)
        true = ids[slot, position]
        scores = lens.scores(proxies[slot, position], position == 0)
        next_best = scores.scatter_(1, true[:, None], float("-inf")).argmax(-1)
        likely = tokens[torch.randint(len(tokens), (len(slot),), generator=generator).to(ids.device)]
        if decoder.layer.near_head and start:
            prior = decoder.log_probs(states[slot, position - 1])
            prior = prior.masked_fill_(~vocabulary.allowed, float("-inf")).exp().cpu()
            likely = torch.multinomial(prior, 1, generator=generator)[:, 0].to(true.device)
        others = torch.stack([next_best, likely], 1)
        away = states[slot, position][:, None] - lanes.fan_out_at(lane, place, others).float()
        embeds = vocabulary.embedding[true][:, None] - vocabulary.embedding[others]
        distinct = others != true[:, None]
        far = embeds.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        sums.add((embeds / far)[distinct], (away / far)[distinct])
    solution, covariance = sums.regression()
    variance, directions = torch.linalg.eigh(covariance)
    return ChangeModel(
        vocabulary, directions.float(), variance.clamp_min(1e-30).float(), (solution @ directions).float()
    )
