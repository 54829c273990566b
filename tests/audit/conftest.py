"""One small audit of the bundled model, which the tests of this folder look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from invert_fast import Inverter
from invert_fast.cli.main import main

from ..small_fits import shrink

PROMPTS = [
    "The password is hunter2, not 4711.",
    "Meet me at a quarter past nine.",
    "<script>alert(1)</script> & more",
    "She said: “never again”.",
]
OPTIONS = ["--max-tokens", "9", "--layers", "embeddings,last", "--store-dtype", "fp32", "--measure", "3"]
OPTIONS += ["--defence", "gaussian:0.5", "drop:0.4", "--seed", "5"]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the prompts; fits of a second, in a cache of their own."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "cache").mkdir()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setenv("INVERT_FAST_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def bundled(place: Path) -> Inverter:
    return Inverter.from_pretrained("bundled")


@pytest.fixture(scope="session")
def whole(place: Path) -> Path:
    """The folder that the command writes."""
    folder = place / "whole"
    given = ["audit", "--model", "bundled", "--input", str(place / "prompts.jsonl"), "--output", str(folder)]
    assert main([*given, *OPTIONS]) == 0
    return folder
