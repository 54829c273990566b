"""A cache folder of these tests' own, for lenses that are fitted in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from invert_fast.engine import calibrate

from ..small_fits import shrink


@pytest.fixture(autouse=True, scope="module")
def small(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVERT_FAST_CACHE", str(folder))
        shrink(patch)
        patch.setattr(calibrate, "_LONG", 32)
        yield folder
