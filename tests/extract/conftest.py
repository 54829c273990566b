"""The model that everything is extracted from."""

from __future__ import annotations

import pytest

from invert_fast import Inverter


@pytest.fixture(scope="session")
def inverter() -> Inverter:
    return Inverter.from_pretrained("bundled", device="cpu")
