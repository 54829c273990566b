"""How much of a certificate recovered states can bear: calibrated through the way that the user's numbers went.

The model's own samples go from states to logits, are cut to the same entries, rounded to the same precision and solved
for again. Where the user's rows promise larger errors than those samples had (other ids, a larger misfit than rounding
explains), the noise is raised by as much: a certificate then asks for tokens that are further apart, or is not given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..engine.calibrate import measure
from ..engine.tolerances import Tolerances
from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..types import InputError, dtype_named
from .recorded import Logits
from .solve import Solution
from .states import StateSolver

_NOISE_FACTOR = 2.0  # over the largest measured: errors that are sums of hundreds of roundings vary little


def round_trip(solver: StateSolver, hidden: Tensor, like: Logits) -> Solution:
    """States `[T, D]` → the same kind of record as `like` → states."""
    values = solver.head.logits(hidden, like.compute_dtype)
    if like.kind == "log_probs" or (like.kind == "auto" and solver.head.softcap is None):
        values = values.log_softmax(-1)
    ids = like.ids
    if ids is None:
        values = values[:, : like.values.shape[1]]
    elif ids.dim() == 1:
        values = values[:, ids.to(values.device)]
    else:
        values, ids = values[:, : solver.decoder.usable_ids].topk(like.values.shape[1])
    kind = like.kind if like.kind != "auto" else "logits" if solver.head.softcap else "auto"
    stored = values.to(dtype_named(like.dtype))
    return StateSolver.solve(solver, Logits(stored, ids, kind, like.dtype, like.compute_dtype))


@torch.no_grad()
def certified_noise(
    solver: StateSolver, decoder: Decoder, vocabulary: Vocabulary, like: Logits, solutions: Iterable[Solution]
) -> Tolerances:
    """Tolerances for the engine. like: one of the records (any of them, all being alike); solutions: of all."""
    promised = 0.0

    def through(hidden: Tensor) -> Tensor:
        nonlocal promised
        found = round_trip(solver, hidden.flatten(0, 1), like)
        promised = max(promised, float(found.deviation.max()))
        return found.hidden.view(hidden.shape).to(hidden)

    found = measure(decoder, vocabulary, "float32", like.compute_dtype, through, _NOISE_FACTOR)
    return found.louder(max(1.0, worst_deviation(solutions) / max(promised, 1e-30)))


def solve_all(
    decoder: Decoder, vocabulary: Vocabulary, logits: Logits | Tensor | Sequence[Logits | Tensor]
) -> tuple[list[Solution], Tolerances | None]:
    """Final states of each record, and the tolerances that they can bear; None where no record has a row."""
    items = [logits] if isinstance(logits, (Logits, Tensor)) else list(logits)
    records = [item if isinstance(item, Logits) else Logits(item) for item in items]
    alike = {(r.dtype, r.compute_dtype) for r in records}
    if len(alike) > 1:
        raise InputError(
            f"log-probs are of {len(alike)} precisions ({', '.join('/'.join(a) for a in sorted(alike))}), expected "
            "one: recover each kind by itself"
        )
    solver = StateSolver(decoder)
    found = [solver.solve(record, index) for index, record in enumerate(records)]
    longest = max(records, key=len, default=None)
    if longest is None or not len(longest):
        return found, None
    return found, certified_noise(solver, decoder, vocabulary, longest, found)


def worst_deviation(solutions: Iterable[Solution]) -> float:
    """The largest error expected of a state; where rows misfit by more than their precision explains, by as much more.

    The misfit is that of all rows together (their median): a single odd row fails by itself, and does not blur others.
    """
    deviation, misfits = 0.0, []
    for found in solutions:
        if len(found.deviation):
            deviation = max(deviation, float(found.deviation.max()))
            if found.chi is not None:
                misfits.append(found.chi)
    misfit = float(torch.cat(misfits).median()) if misfits else 1.0
    return deviation * max(1.0, misfit)
