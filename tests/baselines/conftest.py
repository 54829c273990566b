"""Models for the published loops, and a log of every forward pass."""

from __future__ import annotations

import pytest

from invert_fast.baselines import common
from invert_fast.cli import demo
from invert_fast.model.load import load

from ..families import build
from .runs import SMALL, Log


@pytest.fixture(scope="module")
def bundled():
    """The bundled model and two short texts."""
    model, tokenizer = load("bundled")
    return model, [tokenizer(text)["input_ids"][:4] for text in demo.sentences()[:2]]


@pytest.fixture(scope="module")
def small():
    return build("llama", vocab=SMALL)


@pytest.fixture
def log(monkeypatch) -> Log:
    log, run = Log(), common.WatchedModel.states

    def states(self, embeds, cache=None):
        log.lengths.append(embeds.shape[1])
        kept = log.proxies if embeds.requires_grad else log.candidates
        kept.extend(row[-1].detach().clone() for row in embeds)
        return run(self, embeds, cache)

    monkeypatch.setattr(common.WatchedModel, "states", states)
    return log
