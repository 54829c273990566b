"""A learned lens of a large vocabulary, within a stated time: half of it for texts, most of the rest for steps.

The texts make the linear lens better as well (`deepen.py`), and the learned one starts from that: before any training
it drafts as much right.
"""

from __future__ import annotations

import logging
import math
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
from .deepen import MINUTES, Clock, deepened, held_out, named, right
from .gathered import GatheredTexts
from .learned import LearnedLens
from .linear import LinearLens
from .measure import measure_repair
from .mixture import Held
from .prior import draft_lists
from .prior_fit import measure_orders
from .settings import Fit, FitReport
from .trainer import Trainer

log = logging.getLogger("invert_fast")

_WIDTH, _LAYERS = 256, 2
_FOR_TEXTS, _TO_MEASURE = 0.5, 0.04  # of the time
_SCALES = (1.0, 0.5, 0.3, 0.2, 0.1)  # of scores: how much the linear lens exaggerates


def fit_large(
    decoder: Decoder,
    vocabulary: Vocabulary,
    fit: Fit | None = None,
    text: Sequence[Sequence[int]] = (),
    output: str | Path | None = None,
) -> FitReport:
    """As `train.fit_learned`, where a vocabulary is too large for all of it to be scored, in `fit.minutes` (15). Cut
    short, the next one goes on from the last checkpoint, with other texts."""
    fit, started = fit or Fit(), time.perf_counter()
    fit = replace(fit, width=fit.width or _WIDTH, layers=fit.layers or _LAYERS)
    minutes = fit.minutes or MINUTES
    log.info("a learned lens of %s: %g minutes, half of it for texts", named(decoder), minutes)
    linear = store.linear_lens(decoder, vocabulary, fit.seed)
    with Clock(total=round(60 * minutes), desc="fit the lens", unit="s", leave=False) as bar:
        test = held_out(decoder, vocabulary, fit.seed, bar)
        before = right(decoder, linear, test)[0]
        data = GatheredTexts(decoder, vocabulary, fit, linear, test)
        until = started + 60 * minutes * _FOR_TEXTS
        deeper, _ = deepened(decoder, vocabulary, linear, fit, text, test, bar, until, also=data.add)
    if deeper is not None and right(decoder, deeper, test)[0] > before:
        store.keep_linear(deeper, decoder, fit.seed)
        linear = deeper
    lens = _begun(decoder, linear, fit)
    lens.linear_accuracy = right(decoder, linear, test)[0]
    left = 60 * minutes * (1 - _TO_MEASURE) - (time.perf_counter() - started)
    _scale(lens, data)
    log.info("gathered %d tokens of texts", data.count)
    trainer = Trainer(lens, data, replace(fit, minutes=max(1e-6, left / 60)))
    trainer.run()
    store.round_weights(lens)
    lens.eval().requires_grad_(False)
    data.list_by(lens)
    top1, top16 = _measure(decoder, lens, test)
    about = {"fit": asdict(fit), "steps": trainer.step}
    whole, name = store.write_learned(lens, decoder, about), store.learned_name(decoder, fit.states_dtype)
    cache.write(name, whole)
    if output is not None:
        write_whole(Path(output), whole)
    trainer.forget()
    first, among, linear_first = ({"held out": round(share, 5)} for share in (top1, top16, lens.linear_accuracy))
    path = cache.path(name)
    kept = None if path is None else str(path)
    seconds = time.perf_counter() - started
    return FitReport(first, among, linear_first, trainer.step, seconds, kept, better=lens.pays)


def _begun(decoder: Decoder, linear: LinearLens, fit: Fit) -> LearnedLens:
    """The lens before training."""
    with torch.random.fork_rng(devices=[decoder.device] if decoder.device.type == "cuda" else []):
        torch.manual_seed(fit.seed)
        return LearnedLens(linear, fit.width or _WIDTH, fit.layers or _LAYERS, weighs=decoder.layer.near_head)


@torch.no_grad()
def _scale(lens: LearnedLens, data: GatheredTexts) -> None:
    """Scores become log-probabilities, near enough: the scale under which the texts of a step are likeliest."""
    if data.length < 2:
        return
    losses = []
    for scale in _SCALES:
        lens.log_scale.fill_(math.log(scale))
        losses.append(float(data.loss(lens, 0)))
    lens.log_scale.fill_(math.log(_SCALES[losses.index(min(losses))]))


@torch.no_grad()
def _measure(decoder: Decoder, lens: LearnedLens, test: Held) -> tuple[float, float]:
    """Give the lens what held-out texts tell of it. Returns as `right`."""
    drafted = draft_lists(decoder, lens, test.states)
    if lens.weighs:
        lens.repair = measure_orders(decoder, lens, test.ids, test.states, test.lanes, drafted)
    else:
        best = drafted.proxies, drafted.ids[..., 0], drafted.leads
        lens.repair = measure_repair(decoder, lens, test.ids, test.states, test.lanes, best)
    found = right(decoder, lens, test)
    lens.accuracy = found[0]
    return found
