"""Fits that are small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from invert_fast.lens import mixture, trainer
from invert_fast.lens import texts as training_texts


@pytest.fixture
def small_fits(cache, monkeypatch) -> Path:
    """The empty cache folder, into which they go."""
    monkeypatch.setattr(training_texts, "_POOL", 96)
    monkeypatch.setattr(training_texts, "_HELD", 32)
    monkeypatch.setattr(training_texts, "_LENGTH", 16)
    monkeypatch.setattr(training_texts, "_TOKENS", 512)
    monkeypatch.setattr(training_texts, "_LONG_POOL", 4)
    monkeypatch.setattr(trainer, "_LOOK", 20)
    monkeypatch.setattr(mixture, "LENGTH", 16)
    monkeypatch.setattr(mixture, "_LEAST", 4096)
    return cache
