"""States of a few texts, and what one process makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .states import TEXTS, captured, invert


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="session")
def alone(states) -> Path:
    output = states.with_name("alone.jsonl")
    assert invert(states, output, "--batch-size", "1") == 0
    assert [json.loads(line)["text"] for line in output.read_text(encoding="utf-8").splitlines()] == TEXTS
    return output
