"""A short prompt from one next-token vector: white-box search with the model's forward pass, nothing trained.

The vector gives the last final state (`states.py`). Single exchanges of tokens are proposed by how far a linear model
of the state (`offsets.py`) says they go towards it from where the model really is, the best of them are run through
the model, and the nearest of all that were run are exchanged further: a beam over whole prompts. Related: SODA
(2507.01693), which relaxes tokens and descends instead.

What is found is only called verified if the model's own forward pass gives the state within its calibrated noise, and
nothing else that was tried, near exchanges among it, comes close to that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..engine.tolerances import Tolerances
from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..types import InputError, Status
from .certify import solve_all
from .exchanges import reorderings, repeated
from .offsets import OffsetLens, offset_lenses
from .recorded import Logits
from .vector import VectorRecovery, VectorSearch

_PASS = 4096  # tokens a forward pass
_WIDE_EVERY = 4  # rounds
_IN_QUESTION = 3.0  # times max(noise, residual): what comes nearer than that may be right as well
_START_ROUNDS = 3  # of coordinate descent on the linear model, from each random start


@dataclass
class _Beam:
    """All prompts of one length for each target: ids `[P, K, T]`, residual and whitened distance `[P, K]`, expanded
    `[P, K]` bool; nearest first by distance."""

    lens: OffsetLens
    ids: Tensor
    residual: Tensor
    distance: Tensor
    expanded: Tensor


@torch.no_grad()
def search_vectors(
    decoder: Decoder,
    vocabulary: Vocabulary,
    vectors: Logits | Tensor | Sequence[Logits | Tensor],
    lengths: Sequence[int],
    settings: VectorSearch | None,
    calibrate: Callable[[], Tolerances],
) -> list[VectorRecovery]:
    """Prompts of so many tokens whose next-token vectors these are, see `Inverter.invert_vector`; calibrate: asked
    where solving for the states leaves no more noise than the model's own."""
    found, tolerances = solve_all(decoder, vocabulary, _last_rows(vectors))
    if not found:
        return []
    targets = torch.cat([one.hidden[-1:].float() for one in found])
    return search_states(decoder, vocabulary, targets, tolerances or calibrate(), lengths, settings)


def search_states(
    decoder: Decoder,
    vocabulary: Vocabulary,
    targets: Tensor,
    tolerances: Tolerances,
    lengths: Sequence[int],
    settings: VectorSearch | None = None,
) -> list[VectorRecovery]:
    """Prompts whose last final state is each row of `targets [P, D]`.

    lengths: how many tokens a prompt may have; each is searched, all side by side, until one is found.
    """
    settings = settings or VectorSearch()
    if not lengths or min(lengths) < 1 or max(lengths) > min(16, decoder.max_length):
        raise InputError(
            f"prompt lengths {list(lengths)} are out of range, expected 1 to {min(16, decoder.max_length)}: a single "
            "vector does not lead to long prompts; record more positions"
        )
    start = time.perf_counter()
    lenses = offset_lenses(decoder, vocabulary, max(lengths))
    run = _Run(decoder, vocabulary, targets.to(decoder.device).float(), tolerances, settings)
    beams = {length: run.begin(lenses[length - 1]) for length in sorted(set(lengths))}
    active = torch.arange(len(targets), device=decoder.device)
    for turn in tqdm(range(settings.rounds), desc="search", unit="round", delay=2, leave=False):
        for beam in beams.values():
            run.expand(beam, active, turn // _WIDE_EVERY if turn % _WIDE_EVERY == _WIDE_EVERY - 1 else None)
        active = active[~run.found(beams)[active]]
        if not len(active):
            break
    rows = [run.conclude(row, beams) for row in range(len(targets))]
    seconds = (time.perf_counter() - start) / max(1, len(rows))
    return [VectorRecovery(*row, seconds=seconds, alternatives=others) for *row, others in rows]


class _Run:
    """One search over several targets `[P, D]`."""

    def __init__(
        self, decoder: Decoder, vocabulary: Vocabulary, targets: Tensor, tolerances: Tolerances, settings: VectorSearch
    ):
        self.decoder, self.vocabulary, self.targets, self.settings = decoder, vocabulary, targets, settings
        self.norm = targets.norm(dim=-1).clamp_min(1e-30)
        self.tolerances = tolerances
        self.forward_tokens = torch.zeros(len(targets), dtype=torch.long, device=targets.device)
        self.allowed = vocabulary.allowed.nonzero().flatten()
        self.generator = torch.Generator().manual_seed(settings.seed)

    def noise_at(self, length: int) -> float:
        """The ceiling of a true prompt's residual."""
        return float(self.tolerances.plain_noise[0 if length == 1 else 1])

    def begin(self, lens: OffsetLens) -> _Beam:
        """Random starts, led by the linear model alone: exchanges of one place after another, the last place first."""
        P, S, T = len(self.targets), self.settings.starts, len(lens.move)
        draws = torch.randint(len(self.allowed), (P, S, T), generator=self.generator)
        ids = self.allowed[draws.to(self.allowed.device)]
        goal = self.targets[:, None].expand(-1, S, -1)
        for turn in range(_START_ROUNDS):
            for place in reversed(range(T)):
                for part in range(P):  # one target at a time: scores are [S, T, V]
                    scores = lens.scores(goal[part], ids[part], None, place)[:, 0]
                    scores = scores.masked_fill(~self.vocabulary.allowed, torch.inf)
                    if turn == 0 and place < T - 1:  # starts differ: the s-th takes the s-th best of its first places
                        rank = torch.arange(S, device=ids.device) % 8
                        best = scores.topk(min(8, scores.shape[1]), largest=False).indices
                        ids[part, :, place] = best.gather(1, rank[:, None].clamp_max(best.shape[1] - 1))[:, 0]
                    else:
                        ids[part, :, place] = scores.argmin(-1)
        empty = torch.zeros(P, 0, device=ids.device)
        beam = _Beam(lens, ids[:, :0], empty, empty, empty.bool())
        self._add(beam, torch.arange(P, device=ids.device), ids)
        return beam

    def expand(self, beam: _Beam, rows: Tensor, wide: int | None = None) -> None:
        """Try the most promising exchanges of the nearest prompts that were not exchanged before; with `wide`, many
        more of the `wide`-th nearest alone: one token may be wrong, and the linear model not see it."""
        if not len(rows):
            return
        waiting, exchanges = beam.distance[rows].masked_fill(beam.expanded[rows], torch.inf), None
        if wide is None:
            chosen = waiting.topk(min(self.settings.beam, waiting.shape[1]), largest=False).indices
            beam.expanded[rows[:, None], chosen] = True
        else:
            at = min(wide, waiting.shape[1] - 1)
            chosen, exchanges = beam.distance[rows].argsort(-1)[:, at : at + 1], self.settings.wide
        base = beam.ids[rows[:, None], chosen]
        parts = range(len(rows))
        new = [self._exchanges(beam.lens, rows[p : p + 1], base[p : p + 1], exchanges) for p in parts]
        self._add(beam, rows, torch.cat(new))

    def _exchanges(self, lens: OffsetLens, rows: Tensor, base: Tensor, count: int | None = None) -> Tensor:
        """The best exchanges of one token of each prompt by the linear model, and its reorderings: `[p, b, T]` →
        `[p, m, T]`.

        Right tokens in a wrong order are a trap for single exchanges, and the commonest one.
        """
        p, b, T = base.shape
        state = self._states(base.flatten(0, 1)).view(p, b, -1)
        self.forward_tokens[rows] += b * T
        scores = lens.scores(self.targets[rows][:, None].expand_as(state), base, state)
        scores = scores.masked_fill(~self.vocabulary.allowed, torch.inf)
        scores.scatter_(-1, base[..., None], torch.inf)
        size = scores.shape[-1]
        at = scores.flatten(-2).topk(min(count or self.settings.exchanges, T * size), largest=False).indices
        new = base[:, :, None].repeat(1, 1, at.shape[-1], 1)
        new.scatter_(-1, (at // size)[..., None], (at % size)[..., None])
        reordered = base[:, :, reorderings(T).to(base.device)]
        return torch.cat([new.flatten(1, 2), reordered.flatten(1, 2)], 1)

    def _states(self, ids: Tensor) -> Tensor:
        """Last states `[n, T] → [n, D]`."""
        parts = ids.split(max(1, _PASS // ids.shape[1]))
        return torch.cat([self.decoder.states(part)[:, -1].float() for part in parts])

    def _add(self, beam: _Beam, rows: Tensor, new: Tensor) -> None:
        """Run prompts `new [p, n, T]` of targets `rows` and keep the nearest, each once."""
        T = new.shape[-1]
        keyed = torch.cat([rows[:, None, None].expand(-1, new.shape[1], 1), new], -1).flatten(0, 1)
        distinct, back = torch.unique(keyed, dim=0, return_inverse=True)
        state = self._states(distinct[:, 1:])
        self.forward_tokens.index_add_(0, distinct[:, 0], torch.full_like(distinct[:, 0], T))
        gap = self.targets[distinct[:, 0]] - state
        residual = (gap.norm(dim=-1) / self.norm[distinct[:, 0]]).nan_to_num(nan=torch.inf)[back].view(new.shape[:2])
        distance = (gap @ beam.lens.whiten).norm(dim=-1).nan_to_num(nan=torch.inf)[back].view(new.shape[:2])
        every = torch.arange(len(self.targets), device=rows.device)
        if len(rows) < len(every):
            self._pad(beam, new.shape[1])
        ids = torch.cat([beam.ids[rows], new], 1)
        residual = torch.cat([beam.residual[rows], residual], 1)
        expanded = torch.cat([beam.expanded[rows], torch.zeros_like(new[..., 0], dtype=torch.bool)], 1)
        distance = torch.cat([beam.distance[rows], distance], 1)
        distance = distance.masked_fill(repeated(ids), torch.inf)
        keep = distance.sort(dim=-1, stable=True).indices[:, : self.settings.pool]
        gone = distance.gather(1, keep).isinf()
        found = (
            ids.gather(1, keep[..., None].expand(-1, -1, T)),
            residual.gather(1, keep).masked_fill(gone, torch.inf),
            distance.gather(1, keep),
            expanded.gather(1, keep) | gone,
        )
        if len(rows) == len(every):
            beam.ids, beam.residual, beam.distance, beam.expanded = found
            return
        for table, values in zip((beam.ids, beam.residual, beam.distance, beam.expanded), found, strict=True):
            table[rows] = values[:, : table.shape[1]]

    def _pad(self, beam: _Beam, more: int) -> None:
        """Room for as many prompts as will be kept."""
        more = min(more, self.settings.pool - beam.ids.shape[1])
        if more <= 0:
            return
        P, T = len(beam.ids), beam.ids.shape[-1]
        beam.ids = torch.cat([beam.ids, beam.ids.new_zeros(P, more, T)], 1)
        beam.residual = torch.cat([beam.residual, beam.residual.new_full((P, more), torch.inf)], 1)
        beam.distance = torch.cat([beam.distance, beam.distance.new_full((P, more), torch.inf)], 1)
        beam.expanded = torch.cat([beam.expanded, beam.expanded.new_ones(P, more)], 1)

    def found(self, beams: dict[int, _Beam]) -> Tensor:
        """`[P]` bool: a prompt is within the noise."""
        near = [beam.residual.amin(1) <= self.noise_at(length) for length, beam in beams.items()]
        return torch.stack(near).any(0)

    def conclude(self, row: int, beams: dict[int, _Beam]) -> tuple:
        """Verify the nearest prompt of one target; all of `VectorRecovery` but the time."""
        one = torch.tensor([row], device=self.targets.device)
        length = min(beams, key=lambda n: float(beams[n].residual[row].min()) / self.noise_at(n))
        beam, noise = beams[length], self.noise_at(length)
        best = beam.ids[row, beam.residual[row].argmin()]
        state = self.decoder.capture(best[None])[0, -1].float()  # the model's own pass, not ours
        residual = float((state - self.targets[row]).norm() / self.norm[row])
        self.forward_tokens[row] += length
        others: list[list[int]] = []
        runner_up, status = torch.inf, Status.NOT_FOUND
        if residual <= noise:
            self._add(beam, one, self._rivals(beam.lens, one, best))
        reach = _IN_QUESTION * max(residual, noise)
        for n, other in beams.items():
            differs = (other.ids[row] != best).any(-1) if n == length else torch.ones_like(other.expanded[row])
            near = other.residual[row].masked_fill(~differs, torch.inf)
            runner_up = min(runner_up, float(near.min()))
            close = near <= reach
            others += [ids for ids, flag in zip(other.ids[row].tolist(), close.tolist(), strict=True) if flag]
        if residual <= noise:
            alone = not others and bool((self.vocabulary.class_size[best.cpu()] == 1).all())
            status = Status.CERTIFIED if alone else Status.AMBIGUOUS
        ids = best.tolist()
        tokens = int(self.forward_tokens[row])
        return ids, self.decoder.decode(ids), status, residual, runner_up, tokens, others

    def _rivals(self, lens: OffsetLens, one: Tensor, best: Tensor) -> Tensor:
        """Prompts that may give the same state: exchanges that the linear model thinks small, and near rows."""
        count, T = self.settings.rivals, len(best)
        guessed = self._exchanges(lens, one, best[None, None], count * T)[0]
        distance = self.vocabulary.distances(best).masked_fill(~self.vocabulary.allowed, torch.inf)
        near = distance.scatter(1, best[:, None], torch.inf).topk(min(count, distance.shape[1] - 1), largest=False)
        swapped = best.repeat(T, near.indices.shape[1], 1)
        swapped[torch.arange(T, device=best.device), :, torch.arange(T, device=best.device)] = near.indices
        return torch.cat([guessed, swapped.flatten(0, 1)])[None]


def _last_rows(vectors: Logits | Tensor | Sequence[Logits | Tensor]) -> list[Logits]:
    items = [vectors] if isinstance(vectors, (Logits, Tensor)) else list(vectors)
    return [v.last() if isinstance(v, Logits) else Logits(v[None] if v.dim() == 1 else v[-1:]) for v in items]
