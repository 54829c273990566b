"""Measure an inverter on held-out prompts: plain, with candidates rescored, blurred by a provider, on another model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..types import InputError
from .metrics import Score, score
from .network import PromptInverter
from .rescore import rescore
from .settings import SWEEPS, View
from .target import Target

_BATCH = 100


@dataclass(frozen=True)
class Evaluation:
    """found: the recovered texts; score: against the true ones; verified: how many were confirmed by asking the target,
    and false of them how many that are not the true prompt (both None where nobody asked); queries: asked for it."""

    found: list[str]
    score: Score
    verified: int | None = None
    false: int | None = None
    queries: int = 0


def evaluate(
    net: PromptInverter,
    target: Target,
    prompts: Sequence[Sequence[int]],
    beams: int = 1,
    ask: bool = False,
    view: View | None = None,
) -> Evaluation:
    """Recover prompts (token ids of the target) from what a view of it shows, the inverter's own unless given.

    ask: write `beams` candidates for each prompt and let the target's own vectors choose (`rescore`). InputError for a
    target of another vocabulary size.
    """
    if not prompts:
        raise InputError("no prompts to evaluate on, expected at least one")
    if target.vocab_size != net.shape.vocab_size:
        raise InputError(
            f"the target has a vocabulary of {target.vocab_size}, the inverter was trained on {net.shape.vocab_size}: "
            "it transfers only among models with one tokenizer; train one for this model"
        )
    view = view or net.shape.view
    true = target.decode(prompts)
    found: list[str] = []
    verified = false = queries = 0
    with tqdm(total=len(prompts), desc="evaluate", unit="prompt", delay=2, leave=False) as bar:
        for start in range(0, len(prompts), _BATCH):
            part = prompts[start : start + _BATCH]
            vectors = target.vectors(part, view)
            texts = _candidates(net, target, vectors, beams, beams if ask else 1)
            picked = [0] * len(part)
            if ask:
                asked = rescore(target, view, vectors, [target.encode(beam) for beam in texts])
                picked, queries = asked.chosen, queries + asked.queries
                right = [beam[j] == text for beam, j, text in zip(texts, picked, true[start:], strict=False)]
                verified += sum(asked.verified)
                false += sum(sure and not hit for sure, hit in zip(asked.verified, right, strict=True))
            found += [beam[j] for beam, j in zip(texts, picked, strict=True)]
            bar.update(len(part))
    result = score(found, true)
    return Evaluation(found, result, verified, false, queries) if ask else Evaluation(found, result)


def _candidates(net: PromptInverter, target: Target, vectors: Tensor, beams: int, kept: int) -> list[list[str]]:
    written = net.write(vectors, beams, kept)
    flat = net.texts([row for rows in written for row in rows], target)
    return [flat[i : i + kept] for i in range(0, len(flat), kept)]


def sweep(
    net: PromptInverter,
    target: Target,
    prompts: Sequence[Sequence[int]],
    what: Iterable[str] = tuple(SWEEPS),
) -> list[tuple[str, float, Score]]:
    """Scores of an inverter that was trained without it, under each blur of `SWEEPS`: (name, value, score).

    The inverter's own setting comes first, as ("as trained", 0, …).
    """
    rows = [("as trained", 0.0, evaluate(net, target, prompts).score)]
    for name in what:
        if name not in SWEEPS:
            raise InputError(f"no sweep '{name}', expected one of {', '.join(SWEEPS)}")
        for value in SWEEPS[name]:
            if name == "top_k" and value > target.vocab_size:
                continue
            setting = int(value) if name == "top_k" else value
            view = replace(net.shape.view, **{name: setting})
            rows.append((name, float(value), evaluate(net, target, prompts, view=view).score))
    return rows


def by_length(evaluation: Evaluation, target: Target, prompts: Sequence[Sequence[int]]) -> dict[int, tuple[int, float]]:
    """Length in tokens → (prompts of it, share recovered exactly)."""
    lengths = torch.tensor([len(ids) for ids in prompts])
    exact = torch.tensor([a == b for a, b in zip(evaluation.found, target.decode(prompts), strict=True)])
    return {
        n: (int((lengths == n).sum()), float(exact[lengths == n].float().mean())) for n in lengths.unique().tolist()
    }
