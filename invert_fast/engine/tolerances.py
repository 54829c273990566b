"""How near is near enough: the noise of the true token and the distance of wrong ones, measured, not assumed.

For a model, a layer, a capture precision and a position class (the first position of a trained model is an attention
sink whose states differ little, so it has figures of its own).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .. import ops
from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.vocabulary import Vocabulary
from ..storage import cache
from ..types import dtype_named

FIRST, REST = 0, 1
_TEXTS, _LENGTH, _CONTEXTS, _NEIGHBOURS, _PAIRS = 24, 24, 4, 512, 32
_NOISE_FACTOR = 4.0  # the true token's residual is believed to stay below this many times the largest measured
_APART = 1e-5  # rows nearer than this are never told apart without trying both, whatever the slope
_SLOPE_FACTOR = 0.5  # and a wrong one's above this share of the smallest measured
_RUNNER_UP_FACTOR = 3.0  # a rival is out of the question beyond this many times max(noise ceiling, best residual)


@dataclass(frozen=True)
class Tolerances:
    """Relative L2 residuals, one figure a position class (first, rest).

    noise: ceiling of the true token's residual; tolerance: a token within it is accepted; wrong: the nearest wrong
    token measured; slope: smallest residual of a wrong token per unit of embedding distance, so that
    `slope × Vocabulary.separation` bounds how near any other token can come.
    """

    noise: tuple[float, float]
    tolerance: tuple[float, float]
    wrong: tuple[float, float]
    slope: tuple[float, float]

    @property
    def decades(self) -> tuple[float, float]:
        """log₁₀ of nearest wrong over noise ceiling: how clearly right and wrong are apart."""
        first, rest = (math.log10(max(w, 1e-30) / n) for w, n in zip(self.wrong, self.noise, strict=True))
        return first, rest

    def at_noise(self, noise: tuple[float, float]) -> Tolerances:
        """The same model and layer, for states of another noise."""
        # accepted: half-way (in decades) between noise and the nearest wrong token, but never below the noise ceiling
        first, rest = (max(n, min(math.sqrt(n * w), 32 * n)) for n, w in zip(noise, self.wrong, strict=True))
        return Tolerances(noise, (first, rest), self.wrong, self.slope)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """noise, tolerance and slope of the class of each position."""
        first = positions == 0
        noise, tolerance, slope = (torch.where(first, *pair) for pair in (self.noise, self.tolerance, self.slope))
        return noise, tolerance, slope

    @staticmethod
    def reach(residual: Tensor, noise: Tensor) -> Tensor:
        """3 max(n, r): how near a rival has to come to be in question beside a best residual r, n being the ceiling of
        true ones."""
        return _RUNNER_UP_FACTOR * torch.maximum(noise, residual)

    def describe(self) -> str:
        rows = zip(("first", "rest"), self.noise, self.tolerance, self.wrong, self.decades, strict=True)
        return "; ".join(
            f"{name}: noise {n:.1e}, tolerance {t:.1e}, nearest wrong {w:.1e} ({d:.1f} decades)"
            for name, n, t, w, d in rows
        )


def calibrate(decoder: Decoder, vocabulary: Vocabulary, dtype: str, compute_dtype: str, seed: int = 0) -> Tolerances:
    """Measure, or read from the cache folder. Takes about a hundred forward passes' worth of tokens; deterministic.

    dtype: precision the states are stored in; compute_dtype: precision of the forward pass that made them.
    """
    key = cache.key(decoder.identity, "tolerances", dtype, compute_dtype, str(decoder.dtype), decoder.device.type)
    if (stored := _stored(key)) is not None:
        return stored
    ids = _sample_ids(vocabulary, min(_LENGTH, decoder.max_length), seed)
    noise = _noise(decoder, ids, dtype, compute_dtype)
    wrong, slope = zip(*(_wrong(decoder, vocabulary, ids, at) for at in (FIRST, REST)), strict=True)
    found = Tolerances(noise, noise, wrong, slope).at_noise(noise)  # type: ignore[arg-type]
    cache.write(key, json.dumps(asdict(found)).encode())
    return found


def _stored(key: str) -> Tolerances | None:
    """What an earlier run measured; anything but four pairs of positive numbers is measured again."""
    entry = cache.read_json(key) or {}
    try:
        found = Tolerances(**{name: (float(first), float(rest)) for name, (first, rest) in entry.items()})
    except (TypeError, ValueError):
        return None
    return found if all(0 < x < math.inf for pair in asdict(found).values() for x in pair) else None


def _sample_ids(vocabulary: Vocabulary, length: int, seed: int) -> Tensor:
    """Random tokens `[_TEXTS, length]`: the noise of a state hardly depends on what its text says."""
    ids = vocabulary.allowed.nonzero().flatten().cpu()
    generator = torch.Generator().manual_seed(seed)
    return ids[torch.randint(len(ids), (_TEXTS, length), generator=generator)].to(vocabulary.allowed.device)


def noise_through(
    decoder: Decoder,
    vocabulary: Vocabulary,
    compute_dtype: str,
    through: Callable[[Tensor], Tensor],
    factor: float = _NOISE_FACTOR,
    seed: int = 0,
) -> tuple[float, float]:
    """Noise ceilings (first, rest), `factor` times the largest measured, of states that went `[B, T, D] → [B, T, D]`
    through something lossy."""
    ids = _sample_ids(vocabulary, min(_LENGTH, decoder.max_length), seed)
    first, rest = _noise(decoder, ids, "float32", compute_dtype, through)
    return first * factor / _NOISE_FACTOR, rest * factor / _NOISE_FACTOR


@torch.no_grad()
def _noise(
    decoder: Decoder,
    ids: Tensor,
    dtype: str,
    compute_dtype: str,
    through: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Ceilings of the residual of true tokens: states captured as the user's were, verified as ours will be.

    Verified twice, as a draft from nothing and as single tokens after a prefix, since engines do both.
    """
    captured = _captured_as(decoder, ids, compute_dtype).to(dtype_named(dtype)).float()
    captured = captured if through is None else through(captured)
    B, T = ids.shape
    lanes = Lanes(decoder, B, T)
    lanes.load(torch.arange(B, device=ids.device), [0] * B, list(captured))
    slots = torch.arange(B, device=ids.device)
    found = []
    for width in (T, 1):
        lanes.length[:] = 0
        for start in range(0, T, width):
            part = ids[:, start : start + width]
            hidden = lanes.draft(slots, part) if width > 1 else lanes.fan_out(slots, decoder.embed(part))
            found.append(
                ops.residuals(
                    hidden.float().flatten(0, 1)[:, None], captured[:, start : start + width].flatten(0, 1)
                ).view(B, -1)
            )
            chosen = torch.zeros(B, dtype=torch.long, device=ids.device)
            lanes.commit(slots, part, torch.full_like(chosen, part.shape[1]), slots, chosen if width == 1 else None)
    both = torch.stack([found[0], torch.cat(found[1:], 1)])  # [2, B, T]
    first, rest = both[:, :, 0].max().item(), both[:, :, 1:].max().item() if T > 1 else 0.0
    floor = 1e-6  # fp32 on another machine or batch shape differs by this much
    return _NOISE_FACTOR * max(first, floor), _NOISE_FACTOR * max(rest, floor)


def _captured_as(decoder: Decoder, ids: Tensor, compute_dtype: str) -> Tensor:
    dtype = dtype_named(compute_dtype)
    if dtype == decoder.dtype:
        return decoder.capture(ids)
    other = copy.deepcopy(decoder.model)
    nn.Module.to(other, dtype)
    return Decoder(other, decoder.tokenizer, decoder.layer.name, insist=True).capture(ids)


@torch.no_grad()
def _wrong(decoder: Decoder, vocabulary: Vocabulary, ids: Tensor, position: int) -> tuple[float, float]:
    """Nearest wrong residual and smallest residual per embedding distance, over each context's nearest neighbours in
    the embedding matrix and over the closest pairs of the whole vocabulary."""
    lanes = Lanes(decoder, len(ids), ids.shape[1])
    slots = torch.arange(len(ids), device=ids.device)
    if position == REST and ids.shape[1] > 1:  # contexts of different lengths
        lanes.target_length[:] = ids.shape[1]
        counts = 1 + slots % (ids.shape[1] - 1)
        lanes.draft(slots, ids)
        lanes.commit(slots, ids, counts, slots)
    hard, rivals = vocabulary.closest_pairs(_PAIRS)
    nearest_wrong, slope = float("inf"), float("inf")
    true = torch.cat([ids[:_CONTEXTS, -1], hard])
    near = [_neighbours(vocabulary, token, min(_NEIGHBOURS, vocabulary.size)) for token in ids[:_CONTEXTS, -1].tolist()]
    tests = [*near, *rivals[:, None]]
    for number, (token, others) in enumerate(zip(true.tolist(), tests, strict=True)):
        others = others[vocabulary.representative[others] != vocabulary.representative[token]]
        if not len(others):
            continue
        slot = slots[number % len(slots)][None]
        candidates = torch.cat([torch.tensor([token], device=others.device), others])
        hidden = lanes.fan_out(slot, decoder.embed(candidates)[None]).float()
        residual = ops.residuals(hidden[:, 1:], hidden[:, 0])[0]
        distance = vocabulary.distances(others.new_tensor([token]))[0, others]
        nearest_wrong = min(nearest_wrong, residual.min().item())
        apart = distance > _APART
        slope = min(slope, (residual[apart] / distance[apart]).min().item() if bool(apart.any()) else slope)
    if math.isinf(slope):  # a vocabulary of one token: nothing can be mistaken for it
        return 1.0, 1.0
    return nearest_wrong, _SLOPE_FACTOR * min(slope, 1.0)


def _neighbours(vocabulary: Vocabulary, token: int, count: int) -> Tensor:
    distance = vocabulary.distances(vocabulary.representative[token][None])[0]
    distance = distance.masked_fill(~vocabulary.allowed, torch.inf)
    return distance.topk(min(count, int(vocabulary.allowed.sum())), largest=False).indices
