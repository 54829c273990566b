"""Fits that are small enough for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..small_fits import shrink


@pytest.fixture
def small_fits(cache, monkeypatch) -> Path:
    """The empty cache folder, into which they go."""
    shrink(monkeypatch)
    return cache
