"""Training the learned lens on what the model itself writes, mixed with random tokens: no data is needed.

States are computed anew in each step, by the model itself; `texts.py` has what is trained on, `trainer.py` the steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..storage import cache
from ..storage.atomic import write_whole
from . import store
from .base import Lens
from .learned import LearnedLens
from .linear import LinearLens
from .linear_fit import fit_linear
from .measure import accuracy, measure_repair
from .prior import draft_lists
from .settings import Fit, FitReport
from .texts import TrainingTexts
from .trainer import Trainer

_EASY, _SMALL, _LARGE = 0.9, (128, 1), (192, 2)  # width and layers where the linear lens is right so often, and else


def fit_learned(
    decoder: Decoder,
    vocabulary: Vocabulary,
    fit: Fit | None = None,
    text: Sequence[Sequence[int]] = (),
    output: str | Path | None = None,
) -> FitReport:
    """Train a lens for the decoder's layer and keep it in the cache folder, from where `choose_lens` takes it. Goes on
    from the checkpoint of an equal fit that was cut short.

    text: token ids of texts like those to be recovered; half of the training text is then theirs; output: also write
    the lens to this file.
    """
    fit, started = fit or Fit(), time.perf_counter()
    if fit.noise:
        linear = fit_linear(decoder, vocabulary, fit.seed, fit.noise)
    else:
        linear = store.linear_lens(decoder, vocabulary, fit.seed)
    width, layers = _SMALL if linear.accuracy >= _EASY else _LARGE
    width, layers = fit.width or width, fit.layers or layers
    fit = replace(fit, width=width, layers=layers)
    data = TrainingTexts(decoder, vocabulary, fit, text)
    with torch.random.fork_rng(devices=[decoder.device] if decoder.device.type == "cuda" else []):
        torch.manual_seed(fit.seed)
        lens = LearnedLens(linear, width, layers)
    trainer = Trainer(lens, data, fit)
    trainer.run()
    store.round_weights(lens)
    lens.eval().requires_grad_(False)
    ids, states = data.held_ids, data.held_states
    drafted = linear.draft(states) if linear.prior is None else draft_lists(decoder, linear, states).ids[..., 0]
    lens.linear_accuracy = (drafted == ids).float().mean().item()
    lens.accuracy = (lens.draft(states) == ids).float().mean().item()
    lens.repair = measure_repair(decoder, lens, ids, states)
    report = _report(lens, linear, data, trainer.step)
    about = {"fit": asdict(fit), "steps": trainer.step, "top1": report.top1, "top16": report.top16}
    whole = store.write_learned(lens, decoder, about)
    name = store.learned_name(decoder, fit.states_dtype)
    cache.write(name, whole)
    if output is not None:
        write_whole(Path(output), whole)
    trainer.forget()
    return replace(report, seconds=time.perf_counter() - started, path=_named(cache.path(name)), better=lens.pays)


def fit_linear_again(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0) -> FitReport:
    """The linear lens anew, and how well it drafts on the texts that learned lenses are measured on."""
    started = time.perf_counter()
    lens = store.linear_lens(decoder, vocabulary, seed, again=True)
    if lens.prior is not None:  # of a large vocabulary, which learned lenses' texts take minutes to be sampled from
        report = FitReport({"held out": round(lens.accuracy, 5)}, {}, {}, 0, 0.0, None)
    else:
        report = _report(lens, lens, TrainingTexts(decoder, vocabulary, Fit(seed=seed), ()), 0)
    path = cache.path(store.linear_name(decoder, seed))
    return replace(report, seconds=time.perf_counter() - started, path=_named(path))


def _report(lens: Lens, linear: LinearLens, data: TrainingTexts, steps: int) -> FitReport:
    found = {name: accuracy(lens, *data.held(name)) for name in ("written", "random")}
    base = {name: round(accuracy(linear, *data.held(name))[0], 5) for name in found}
    top1, top16 = ({name: round(pair[i], 5) for name, pair in found.items()} for i in (0, 1))
    return FitReport(top1, top16, base, steps, 0.0, None)


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)
