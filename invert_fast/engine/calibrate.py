"""Measuring tolerances: texts are captured as the user's were, and verified as ours will be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.decoder import Decoder, capture
from ..model.numerics import model_in
from ..model.own_lanes import lanes_of
from ..model.samples import sample_texts
from ..model.transfer import picked, sent, sent_one, told_one
from ..model.vocabulary import Vocabulary
from ..storage.noise import Noise
from ..storage.precisions import rounded
from ..types import InputError
from . import tolerance_store
from .noise import Metric, flat_metric, metric_of
from .noisy import NoisyTolerances, noisy_tolerances
from .tolerances import FIRST, REST, Tolerances

_TEXTS, _LENGTH, _LONG, _SINGLES, _STEPPED = 48, 16, 256, 192, 8
_NEAREST, _RANDOM, _PAIRS, _FIRST_LANES = 16, 8, 48, 12
_NOISE_FACTOR = 4.0  # the true token's residual is believed to stay below this many times the largest measured
_COARSE_FACTOR = 2.0  # the same of coarse states, whose noise is measured and not a floor
_FLOOR = 1e-6  # fp32 on another machine or batch shape differs by this much
_NOTHING_SEEN = 1e-5  # residuals below this are like those of fp32 states
_NOTHING = 1e-20
_APART = 1e-5  # rows nearer than this are never told apart without trying both, whatever the slope
_SLOPE_FACTOR = 0.5  # and a wrong one's above this share of the smallest measured
_BELOW = 3.0  # distances of coarse states are believed to stay above so many standard deviations below their mean
_NEAR_FACTOR = 0.7  # and, of rows nearer than the knee, above this share of the smallest measured
_KNEE = 0.05  # share of the measured rows that are nearer than the knee: there states are as far apart as rows
_UNSEEN = 1 / 3  # spread of noise that there is none of to measure it by
_SPREAD_FACTOR = 1.25  # noise along a direction is believed to vary by this much more than measured

Through = Callable[[Tensor], Tensor]


@dataclass
class _Measured:
    """Texts `[b, T]` of one length: ids, and the noise of their states `[b, T, D]` over the length of each, as verified
    in one draft and (None where it was not) token by token."""

    ids: Tensor
    drafted: Tensor
    stepped: Tensor | None = None

    def rows(self, at: int) -> Tensor:
        parts = [part for part in (self.drafted, self.stepped) if part is not None]
        return torch.cat([(part[:, 0] if at == FIRST else part[:, 1:]).flatten(0, -2) for part in parts])


def calibrate(
    decoder: Decoder, vocabulary: Vocabulary, dtype: str, compute_dtype: str, flat: bool = False, seed: int = 0
) -> Tolerances:
    """Measure, or read from the cache folder. Takes a few thousand tokens through the model; deterministic.

    dtype: precision the states are stored in; compute_dtype: precision of the forward pass that made them, or `int8`:
    with weights rounded to that; flat: as in `measure`.
    """
    name = tolerance_store.name(decoder, dtype, compute_dtype + " flat" * flat)
    if (stored := tolerance_store.read(name, decoder)) is not None:
        return stored
    found = measure(decoder, vocabulary, dtype, compute_dtype, flat=flat, seed=seed)
    tolerance_store.write(name, found)
    return found


def with_noise(
    decoder: Decoder, vocabulary: Vocabulary, own: Tolerances, noise: Noise, rows: Tensor
) -> NoisyTolerances:
    """For states that are as `own` was measured for, and got `noise`; rows `[T, D]`: of one text of them."""
    precision = str(decoder.dtype).removeprefix("torch.")
    flat = calibrate(decoder, vocabulary, precision, precision, flat=True)
    length = rows.float().norm(dim=-1) if len(rows) else torch.ones(1)
    first, rest = float(length[0]), float(length[1:].median() if len(length) > 1 else length.mean())
    return noisy_tolerances(flat, own, noise, (first, rest), decoder.width)


@torch.no_grad()
def measure(
    decoder: Decoder,
    vocabulary: Vocabulary,
    dtype: str,
    compute_dtype: str,
    through: Through | None = None,
    factor: float = _COARSE_FACTOR,
    flat: bool = False,
    seed: int = 0,
) -> Tolerances:
    """As `calibrate`, nothing kept. through: what else states `[T, D]` of a text went through before they came here;
    factor: noise ceiling over the largest noise measured, where states are coarse; flat: how far states are apart, in
    the plain metric and whatever the noise, as for states that get louder noise than this."""
    exact = not flat and dtype == compute_dtype == "float32" and decoder.dtype == torch.float32 and through is None
    factor = _NOISE_FACTOR if exact else factor
    length = min(_LENGTH, decoder.max_length)
    texts = sample_texts(decoder, vocabulary.allowed, _TEXTS, length, seed)
    singles = sample_texts(decoder, vocabulary.allowed, _SINGLES, 1, seed + 1)
    late = sample_texts(decoder, vocabulary.allowed, 2, min(_LONG, decoder.max_length), seed + 2)
    groups = [texts, singles, *([late] if late.shape[1] > length else [])]
    block = 1 + _NEAREST + _RANDOM
    work = 2 * sum(ids.numel() for ids in groups) + length * _STEPPED + (_TEXTS + _FIRST_LANES) * block + 4 * _PAIRS
    with tqdm(total=work, desc="calibrate", unit="token", delay=2, leave=False) as bar:
        measured = [_noise(decoder, ids, dtype, compute_dtype, through, ids is texts, bar) for ids in groups]
        noise = [torch.cat([m.rows(at) for m in measured]) for at in (FIRST, REST)]
        noise[REST] = noise[REST] if len(noise[REST]) else noise[FIRST]  # a model of one position
        noise = [_heard(rows) for rows in noise]
        # solved for, or rounded, so well that there is no noise to learn from
        exact = exact or (not flat and max(float(rows.norm(dim=-1).max()) for rows in noise) <= _NOTHING_SEEN)
        metric = None if exact else flat_metric(decoder.width, decoder.device) if flat else metric_of(*noise)
        lengths = [_lengths(metric, rows, at) for at, rows in enumerate(noise)]
        # coarse passes that differ at all differ in the last digit, whether they do in these shapes or only in others
        floor = _FLOOR if exact or decoder.dtype == torch.float32 else torch.finfo(decoder.dtype).eps / 2
        typical = [max((own.max() if exact else own.square().mean().sqrt()).item(), floor) for own in lengths]
        found = [_wrong(decoder, vocabulary, measured[0], at, metric, typical[at], bar, seed) for at in (FIRST, REST)]
    ceiling = tuple(factor * max(own.max().item(), floor) for own in lengths)
    longer = tuple(
        max(rows.norm(dim=-1).max().item(), floor) / max(own.max().item(), floor)
        for rows, own in zip(noise, lengths, strict=True)
    )
    wrong, bounds, spread = zip(*found, strict=True)
    slope, power, knee, bend, near, within = zip(*bounds, strict=True)
    pairs = (ceiling, ceiling, wrong, slope, tuple(typical))
    made = Tolerances(*pairs, plain=longer, metric=metric)  # type: ignore[arg-type]
    if not exact:
        made = replace(made, power=power, knee=knee, bend=bend, near=near, within=within, spread=spread)
    return made.at_noise(made.noise)


def _lengths(metric: Metric | None, rows: Tensor, at: int) -> Tensor:
    plain = rows.norm(dim=-1)
    return plain if metric is None else metric.lengths(rows, plain, torch.full_like(plain, at == FIRST).bool())


def _noise(
    decoder: Decoder, ids: Tensor, dtype: str, compute_dtype: str, through: Through | None, steps: bool, bar: tqdm
) -> _Measured:
    """Noise of true tokens: states captured as the user's were, verified as ours will be: as a draft from nothing and,
    for `steps`, as single tokens after a prefix, since engines do both."""
    captured = rounded(_captured(decoder, ids, compute_dtype), dtype).float()
    if not bool(captured.isfinite().all()):
        raise InputError(
            f"states of this model overflow when they are computed in {compute_dtype} and stored in {dtype}, expected "
            "finite numbers to calibrate on: name the precisions of the capture (states_dtype, compute_dtype)"
        )
    captured = captured if through is None else through(captured)
    bar.update(ids.numel())
    B, T = ids.shape
    found = []
    for width, lanes in (
        (T, lanes_of(decoder, B, T)),
        *([(1, lanes_of(decoder, min(B, _STEPPED), T))] if steps else []),
    ):
        slots = torch.arange(lanes.slots)
        lanes.target_length[:] = T
        parts, none = [], torch.zeros_like(slots)
        for start in range(0, T, width):
            part = ids[: lanes.slots, start : start + width]
            parts.append(lanes.draft(slots, part) if width > 1 else lanes.fan_out(slots, part))
            lanes.commit(slots, part, none + part.shape[1], slots, none if width == 1 else None)
            bar.update(part.numel())
        found.append(_off(torch.cat(parts, 1), captured[: lanes.slots]))
    return _Measured(ids, *found)


def _heard(rows: Tensor) -> Tensor:
    """Noise without what is none at all, bit for bit, unless all is: passes that were alike by luck tell nothing."""
    some = rows.any(-1)
    return rows[some] if bool(some.any()) else rows


def _off(ours: Tensor, theirs: Tensor) -> Tensor:
    return (theirs - ours.float()) / theirs.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _captured(decoder: Decoder, ids: Tensor, compute_dtype: str) -> Tensor:
    if compute_dtype == str(decoder.dtype).removeprefix("torch."):
        if decoder.dtype == torch.float32:
            return decoder.capture(ids)
        # a coarse pass hangs on how many rows there are: in one of the same size nothing would be seen of its noise
        few = min(8, len(ids) - 1)
        return torch.cat([decoder.capture(part) for part in (*ids[:few].split(1), *ids[few:].split(17))])
    model, rows = model_in(decoder.model, compute_dtype), len(ids)
    if decoder.own is not None:
        rows = max(1, decoder.own.at_once // ids.shape[1])
    return torch.cat([capture(model, decoder.layer, part, decoder.reading) for part in ids.split(rows)])


def _wrong(
    decoder: Decoder,
    vocabulary: Vocabulary,
    measured: _Measured,
    at: int,
    metric: Metric | None,
    typical: float,
    bar: tqdm,
    seed: int,
) -> tuple[float, tuple[float, ...], float]:
    """Of wrong tokens in position class `at`, in the metric: the nearest residual; slope, power, knee, bend, near and
    within (see `Tolerances`) of how far their states are at least; and the spread of noise along the directions to
    them. Tried are the nearest neighbours in the embedding of the token that stands in each of several contexts, some
    random ones, and the closest pairs of a large sample."""
    ids, (B, T) = measured.ids, measured.ids.shape
    lanes = lanes_of(decoder, B, T)
    slots, length = torch.arange(B), torch.zeros(B, dtype=torch.long)
    if at == REST and T > 1:  # contexts of different lengths
        lanes.target_length[:] = T
        length = 1 + slots % (T - 1)
        lanes.draft(slots, ids)
        lanes.commit(slots, ids, length, slots)
    if at == FIRST:
        slots, length = slots[:_FIRST_LANES], length[:_FIRST_LANES]
    token = vocabulary.representative[picked(ids, slots, length)]
    near = sent_one(ids.device, vocabulary.neighbours.of(told_one(token))[0][:, :_NEAREST])
    generator = torch.Generator().manual_seed(seed)
    allowed = vocabulary.neighbours.candidates
    random = allowed[torch.randint(len(allowed), (len(slots), _RANDOM), generator=generator).to(allowed.device)]
    others = torch.cat([near, random], 1)
    of = token[:, None].expand_as(others)
    closest = sent(ids.device, *vocabulary.closest_pairs(_PAIRS))
    hard, rival = (_shared_out(part, len(slots)) for part in closest)
    block = torch.cat([token[:, None], others, hard, rival], 1)
    hidden = lanes.fan_out(slots, block.clamp_min(0)).float()
    bar.update(block.numel())
    ours, theirs, hards, rivals = hidden.split([1, others.shape[1], hard.shape[1], hard.shape[1]], 1)
    pairs = torch.cat([of, hard], 1), torch.cat([others, rival], 1)
    there = torch.cat([ours.expand_as(theirs), hards], 1)
    apart = (torch.cat([theirs, rivals], 1) - there) / there.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    counts = (pairs[1] >= 0) & (pairs[0] >= 0)
    counts &= vocabulary.representative[pairs[0].clamp_min(0)] != vocabulary.representative[pairs[1].clamp_min(0)]
    counts &= there.norm(dim=-1) > _NOTHING  # the row of a padding token may be zero, and its state then too
    if not bool(counts.any()):  # a vocabulary of one token: nothing can be mistaken for it
        return 1.0, (1.0, 0.0, 1.0, 1.0, 1.0, 0.0), 1.0
    noise = picked(measured.drafted, slots, length)
    distance = (vocabulary.seen[pairs[0].clamp_min(0)] - vocabulary.seen[pairs[1].clamp_min(0)]).norm(dim=-1)
    distance = distance / vocabulary.unit[pairs[0].clamp_min(0)]
    away = _lengths(metric, apart, at)
    clear = counts & (distance > _APART)
    nearest = away[counts].min().item()
    if metric is None:
        slope = min(1.0, (away / distance)[clear].min().item()) if bool(clear.any()) else 1.0
        return nearest, (_SLOPE_FACTOR * slope, 0.0, 1.0, 1.0, 1.0, 0.0), 1.0
    loud = (_lengths(metric, noise, at)[:, None] / typical).clamp_min(1e-3).expand_as(away)
    loud = torch.ones_like(away) if not metric.held.shape[-1] else loud  # noise that has nothing to do with the context
    hard_ones = torch.zeros_like(clear)
    hard_ones[:, others.shape[1] :] = True
    context = torch.arange(len(away), device=ids.device)[:, None].expand_as(away)
    bounds = _follow(*(figures[clear] for figures in (away, distance, loud, hard_ones, context)))
    counts &= noise.any(-1, keepdim=True)  # where there is some
    spread = metric.cosines(noise[:, None].expand_as(apart)[counts], apart[counts], at).square().mean().sqrt().item()
    spread = _UNSEEN if math.isnan(spread) else max(spread, 1 / math.sqrt(decoder.width))
    return nearest, bounds, _SPREAD_FACTOR * spread


def _follow(away: Tensor, distance: Tensor, loud: Tensor, hard: Tensor, context: Tensor) -> tuple[float, ...]:
    """Least squares of log ‖states apart‖ on log ‖rows apart‖ and log noise (over the typical one), `[n]` each, and a
    stated number of deviations below it: slope, power, knee, bend; and the deviation within a context. hard `[n]` bool:
    of pairs of rows that were chosen for being nearest to each other in all of the vocabulary: they say how near very
    near ones come, and nothing of the others."""
    away = away.clamp_min(_NOTHING)
    knee = float(distance[~hard].quantile(_KNEE)) if not bool(hard.all()) else 1.0
    far = (distance >= knee) & ~hard
    x, y = torch.stack([distance[far].log(), loud[far].log(), torch.ones_like(loud[far])], 1).double(), away[far].log()
    if len(y) < 16:
        return _SLOPE_FACTOR * float((away / distance).min()) if len(away) else 1.0, 0.0, 1e30, 1.0, 1.0, 1.0
    normal = x.T @ x + 1e-3 * len(x) * torch.diag(x.new_tensor([1.0, 1.0, 0.0]))
    bend, power, _ = torch.linalg.solve(normal, x.T @ y.double()).tolist()
    bend, power = min(max(bend, 0.1), 1.0), min(max(power, 0.0), 1.0)
    left = y.double() - x[:, :2] @ x.new_tensor([bend, power])
    deviation = float(left.std())
    least = math.exp(float(left.mean()) - _BELOW * max(deviation, math.log(2) / _BELOW))
    slope = least * knee ** (bend - 1)
    near = (distance < knee) & ~hard
    if bool(near.any()):
        slope = min(slope, _NEAR_FACTOR * float((away[near] / distance[near] / loud[near].pow(power)).min()))
    very = hard & (distance < knee)
    least = float((away[very] / distance[very] / loud[very].pow(power)).min()) if bool(very.any()) else slope
    return slope, power, knee, bend, min(1.0, _NEAR_FACTOR * least / slope), _within(left, context[far])


def _within(values: Tensor, context: Tensor) -> float:
    """Standard deviation of values `[n]` about the mean of the context `[n]` that each is of."""
    count = torch.zeros(int(context.max()) + 1, device=values.device, dtype=values.dtype)
    total = count.index_add(0, context, values)
    count = count.index_add(0, context, torch.ones_like(values))
    off = values - (total / count.clamp_min(1))[context]
    return float((off.square().sum() / max(1, len(values) - int((count > 0).sum()))).sqrt())


def _shared_out(tokens: Tensor, lanes: int) -> Tensor:
    """`[n] → [lanes, ⌈n / lanes⌉]`, one after the other, −1 where none is left."""
    each = -(-len(tokens) // lanes)
    return torch.nn.functional.pad(tokens, (0, lanes * each - len(tokens)), value=-1).view(each, lanes).T
