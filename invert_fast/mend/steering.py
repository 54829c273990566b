"""One vector that was added to every row: what rows have in common beyond the states of their draft.

The draft is read off the rows less what is known of the vector so far, and the model's states of that draft tell more
of it. A row is freed of the vector as *other* rows tell it, so that no row fits for having been fitted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.samples import opening_of, sample_texts
from ..types import InputError, Mended, Recovery, Status
from .work import Work

_ROUNDS = 6
LEAST = 4  # rows: two that tell the vector of two others
_NEAR = 0.02  # relative: rows that are so near to the middle one's vector tell it
_SAMPLES = 12


def mend_steering(work: Work, direction: Tensor | None = None) -> list[Recovery]:
    """The text. direction `[D]`: of the vector where it is known, and only its strength is not."""
    rows = work.rows
    if len(rows) < LEAST:
        raise InputError(
            f"there are {len(rows)} rows, expected {LEAST} or more: a vector that is told by fewer explains any text"
        )
    if work.decoder.reading.kind or work.decoder.reading.prefix:
        raise InputError(
            "steered rows are taken as they were captured: leave --centered, --scale unit and --prefix out"
        )
    along = None if direction is None else _unit(direction, rows)
    best: tuple[int, Tensor] | None = None
    for start in _starts(work):
        count, vectors = _settle(work, start, along)
        if best is None or count > best[0]:
            best = count, vectors
        if 2 * count > len(rows):
            break
    assert best is not None
    count, vectors = best
    found = work.inverted(rows - vectors)
    share = int((found.status == Status.CERTIFIED).sum())
    vector = vectors.mean(0)
    length = float(vector.norm() / (rows - vectors).norm(dim=-1).median().clamp_min(1e-30))
    told = f"one vector, {length:.3g} times as long as a state, was taken out of every row"
    said = f"{told}, as other rows than that one tell it; {share} of {len(rows)} rows certify without it"
    if along is not None:
        said += f"; strength {float(vector @ direction.to(vector) / direction.to(vector).square().sum()):.6g}"  # type: ignore[union-attr]
    mended = Mended("steering", said, tuple(range(len(rows))), vector=vector.double().cpu().numpy())
    return [work.done(found, mended)]


def _unit(direction: Tensor, rows: Tensor) -> Tensor:
    found = direction.flatten().to(rows)
    if found.shape != rows.shape[1:] or not bool(found.isfinite().all()) or not float(found.norm()):
        raise InputError(
            f"the direction has {found.numel()} numbers of length {float(found.norm()):.3g}, expected {rows.shape[1]} "
            "finite ones that are not all zero: give one vector of the width of the states"
        )
    return found / found.norm()


def _starts(work: Work) -> Iterator[Tensor]:
    """What the vector may be, roughly: what a known opening leaves of the first row; nothing; and how far the mean of
    the rows is from that of states of other texts."""
    rows, decoder = work.rows, work.decoder
    bos = next(iter(opening_of(decoder)), getattr(decoder.tokenizer, "bos_token_id", None))
    if isinstance(bos, int):
        yield rows[0] - work.made([bos], 1)[0]
    yield torch.zeros_like(rows[0])
    samples = sample_texts(decoder, work.vocabulary.allowed, _SAMPLES, min(len(rows), decoder.max_length), 0)
    states = decoder.capture(samples).float()
    work.spent += samples.numel()
    yield (rows[1:] - states[:, 1:].flatten(0, 1).mean(0)).mean(0)


def _settle(work: Work, vector: Tensor, along: Tensor | None) -> tuple[int, Tensor]:
    """From a rough vector: how many rows tell the same one in the end; of each row `[T, D]` what others tell."""
    rows, before, near = work.rows, None, torch.zeros(len(work.rows), dtype=torch.bool)
    vector = vector if along is None else (vector @ along) * along
    each = vector.expand(rows.shape)
    for _ in range(_ROUNDS):
        with torch.no_grad():
            ids = work.lens.draft((rows - vector)[None])
            each = rows - work.decoder.states(ids)[0].float()
        work.spent += ids.numel()
        each = each if along is None else (each @ along)[:, None] * along
        middle = each.median(0).values
        near = (each - middle).norm(dim=-1) <= _NEAR * (rows - middle).norm(dim=-1)
        vector = each[near].mean(0) if bool(near.any()) else middle
        if before is not None and torch.equal(ids, before):
            break
        before = ids
    return int(near.sum()), _by_others(each, near, vector)


def _by_others(each: Tensor, near: Tensor, vector: Tensor) -> Tensor:
    """`[T, D]`: what the rows of the other half tell, where at least one of them does."""
    out, parity = vector.expand(each.shape).clone(), torch.arange(len(each), device=each.device) % 2
    for half in (0, 1):
        telling = near & (parity != half)
        out[parity == half] = each[telling].mean(0) if bool(telling.any()) else vector
    return out
