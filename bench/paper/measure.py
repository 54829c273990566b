"""What is measured: every mode on the same prompts, and the published loops, unbatched, on the first few of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from invert_fast import Continuous, Inverter, PerStepProjection
from invert_fast.baselines import continuous_loop, sipit, vma
from invert_fast.baselines.common import BEFORE_NORM, Result, capture
from invert_fast.engine.protocol import Strategy
from invert_fast.engine.trace import first_failure
from invert_fast.reports.score import score
from invert_fast.strategies.continuous import PRESETS
from invert_fast.strategies.registry import strategy_named

ABLATED = {
    "candidates": (1, 10, 100, 2000),
    "init": ("zeros", "token", "gaussian"),
    "metric": ("l1", "l2", "cosine", "dot"),
    "lr": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured. lanes: texts at once; baseline_texts: prompts given to the unbatched SIPIT and VMA,
    one_lane_texts to `sipit` at one lane, searched_texts to the operating points of the continuous search (None: all),
    loop_texts to that at one lane and to the paper's loop, which take minutes a prompt; ablation_texts to each
    ablation; steps: the budgets K that are compared, the last but one being that of the other ablations."""

    lanes: int = 64
    baseline_texts: int = 3
    one_lane_texts: int = 3
    searched_texts: int | None = None
    loop_texts: int = 1
    ablation_texts: int = 20
    steps: tuple[int, ...] = (250, 500, 1000, 2000)
    presets: dict[str, Callable[..., Continuous]] = field(default_factory=lambda: dict(PRESETS))


@dataclass(frozen=True)
class Job:
    """One row: `key` names it in the store, `run()` gives its figures."""

    key: str
    run: Callable[[], dict[str, Any]]


def jobs(inverter: Inverter, texts: dict[str, list[list[int]]], plan: Plan, only: Sequence[str]) -> list[Job]:
    """All rows, the cheap ones first. texts: `c4` and perhaps `wikipedia`, token ids; only: parts wanted, of
    tables, modes, ablations."""
    made: list[Job] = []
    c4 = texts["c4"]
    same: dict[tuple, dict[str, Any]] = {}  # several ablations hold the baseline itself

    def once(ids: list[list[int]], strategy: Strategy, lanes: int) -> dict[str, Any]:
        case = (id(ids), repr(strategy), lanes)
        if case not in same:
            same[case] = batched(inverter, ids, strategy, lanes)
        return same[case]

    def add(key: str, ids: list[list[int]], strategy: Strategy, lanes: int) -> None:
        if all(job.key != key for job in made):
            made.append(Job(key, lambda: once(ids, strategy, lanes)))

    def loop(key: str, name: str, count: int) -> None:
        if all(job.key != key for job in made):
            made.append(Job(key, lambda: unbatched(inverter, c4[:count], name, plan)))

    searched = {name: rows[: plan.searched_texts] for name, rows in texts.items()}
    if "modes" in only:
        for name in ("auto", "speculative", "sipit"):
            add(f"mode: {name}", c4, strategy_named(name), plan.lanes)
        add("mode: sipit, released settings", c4, PerStepProjection.official(), plan.lanes)
        add("mode: sipit, 1 lane", c4[: plan.one_lane_texts], PerStepProjection(), 1)
        loop("mode: vma", "vma", plan.baseline_texts)
    if "modes" in only or "tables" in only:
        loop("mode: official sipit", "official sipit", plan.baseline_texts)
        for preset, make in plan.presets.items():
            add(f"{preset}, c4", searched["c4"], make(), plan.lanes)
        if "wikipedia" in texts and "tables" in only:
            add("fast, wikipedia", searched["wikipedia"], plan.presets["fast"](), plan.lanes)
    if "modes" in only:
        add("mode: continuous baseline, 1 lane", c4[: plan.loop_texts], plan.presets["baseline"](), 1)
        loop("mode: paper loop, baseline", "paper loop, baseline", plan.loop_texts)
    if "ablations" in only:
        some = c4[: plan.ablation_texts]
        base = replace(plan.presets["baseline"](), steps=plan.steps[-2])
        for steps in plan.steps:
            add(f"ablation: steps = {steps}", some, replace(base, steps=steps), plan.lanes)
        for name, values in ABLATED.items():
            for value in values:
                add(f"ablation: {name} = {value}", some, replace(base, **{name: value}), plan.lanes)
    return made


def batched(inverter: Inverter, ids: list[list[int]], strategy: Strategy, lanes: int) -> dict[str, Any]:
    """One of our modes on all of these prompts at once, states captured in one pass as they are found in practice."""
    states = inverter.capture(ids)
    inverter.invert(states[:1], strategy_named("speculative"))  # a lens is fitted once, before the clock starts
    start = time.perf_counter()
    found = inverter.invert(states, strategy, batch_size=min(lanes, len(ids)))
    seconds = time.perf_counter() - start
    tokens = sum(map(len, ids))
    right = [r.token_ids.tolist() == i for r, i in zip(found, ids, strict=True)]
    detected = [
        first_failure(r.discrete_loss, r.loss_ceiling) == _first_wrong(r.token_ids.tolist(), i)
        for r, i in zip(found, ids, strict=True)
    ]
    certified_wrong = sum(r.certified and not good for r, good in zip(found, right, strict=True))
    if certified_wrong:
        raise AssertionError(f"{certified_wrong} prompts are certified and wrong: stop, and report this as a bug")
    return {
        **_accuracy(inverter, [r.token_ids.tolist() for r in found], ids),
        "lanes": min(lanes, len(ids)),
        "detector_right": sum(detected) / len(ids),
        "first_try": sum(
            int(((r.token_ids == np.array(i)) & (r.rank == 0)).sum()) for r, i in zip(found, ids, strict=True)
        )
        / tokens,
        "certified": sum(r.certified for r in found) / len(ids),
        "seconds_per_token": seconds / tokens,
        "steps_per_token": sum(int(r.steps.sum()) for r in found) / tokens,
        "forward_tokens_per_token": sum(r.cost.forward_tokens for r in found) / tokens,
        "backward_tokens_per_token": sum(r.cost.backward_tokens for r in found) / tokens,
    }


def unbatched(inverter: Inverter, ids: list[list[int]], name: str, plan: Plan) -> dict[str, Any]:
    """A published loop, one prompt after the other. SIPIT gets the states that its accept test forgives: made prefix by
    prefix, as its release makes them."""
    decoder = inverter.decoder
    place = decoder.layer
    layer: int | str = -1 if place.normed else BEFORE_NORM if place.near_head else place.depth
    point = plan.presets["baseline"]()
    preset = continuous_loop.Preset(point.steps, point.candidates)
    calls: dict[str, Callable[[Any], Result]] = {
        "official sipit": lambda hidden: sipit.invert(decoder.model, hidden, layer),
        "paper loop, baseline": lambda hidden: continuous_loop.invert(decoder.model, hidden, layer, preset=preset),
        "vma": lambda hidden: vma.invert(decoder.model, hidden, layer),
    }
    results = []
    for row in ids:
        hidden = capture(decoder.model, row, layer, prefix_by_prefix=name == "official sipit")
        results.append(calls[name](hidden))
    tokens = sum(map(len, ids))
    return {
        **_accuracy(inverter, [r.token_ids for r in results], ids),
        "lanes": 1,
        "seconds_per_token": sum(r.seconds for r in results) / tokens,
        "steps_per_token": sum(sum(r.iterations) for r in results) / tokens,
        "forward_tokens_per_token": sum(r.forward_tokens for r in results) / tokens,
        "backward_tokens_per_token": sum(r.backward_tokens for r in results) / tokens,
    }


def _first_wrong(found: list[int], true: list[int]) -> int | None:
    return next((t for t, (a, b) in enumerate(zip(found, true, strict=True)) if a != b), None)


def _accuracy(inverter: Inverter, found: list[list[int]], ids: list[list[int]]) -> dict[str, Any]:
    rows = [{"token_ids": row, "text": inverter.decoder.decode(row)} for row in found]
    result = score(rows, [(row, inverter.decoder.decode(row) or "") for row in ids])
    return {
        "texts": len(ids),
        "tokens": max(map(len, ids)),
        "exact_match": result.exact_match,
        "similarity": result.similarity,
        "token_accuracy": result.token_accuracy,
    }
