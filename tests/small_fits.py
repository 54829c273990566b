"""Fits of lenses of a second, for tests that do not ask how good they are."""

from __future__ import annotations

import pytest

from invert_fast.lens import mixture, trainer
from invert_fast.lens import texts as training_texts


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training_texts, "_POOL", 96)
    patch.setattr(training_texts, "_HELD", 32)
    patch.setattr(training_texts, "_LENGTH", 16)
    patch.setattr(training_texts, "_TOKENS", 512)
    patch.setattr(training_texts, "_LONG_POOL", 4)
    patch.setattr(trainer, "_LOOK", 20)
    patch.setattr(mixture, "LENGTH", 16)
    patch.setattr(mixture, "_LEAST", 4096)
