"""Real trained models on real text, where the folder with them is there, and the bundled one always."""

import json

import numpy as np
import pytest

from invert_fast import Inverter
from invert_fast.cli import demo

from .recovered import check, rows_of


@pytest.fixture(scope="module")
def bundled():
    return Inverter.from_pretrained("bundled")


@pytest.mark.parametrize("name", ["tinystories-656k", "babyllama-tok105"])
def test_shared_models(shared, name):
    inverter = Inverter.from_pretrained(shared / "models" / name)
    documents = [json.loads(line)["text"] for line in (shared / "text" / "c4_eval.jsonl").open(encoding="utf-8")]
    right, certified, _ = check(inverter, rows_of(inverter, documents, 24, 32))
    assert right == certified == 1.0


@pytest.mark.parametrize("layer", ["embeddings", "block:0", "block:2", "block:3", "final_norm"])
def test_bundled_layers(layer):
    inverter = Inverter.from_pretrained("bundled", layer)
    assert check(inverter, [inverter.encode(s) for s in demo.sentences()[:8]])[:2] == (1.0, 1.0)


def test_bundled_drafts_are_cheap(bundled):
    right, certified, forward = check(bundled, [bundled.encode(s) for s in demo.sentences()])
    assert right == certified == 1.0
    assert forward < 3


def test_bundled_at_full_context(bundled):
    """1,024 tokens, natural and random: late positions are certified like early ones."""
    text = bundled.encode(" ".join(demo.sentences()) * 3)[:1024]
    random = np.random.default_rng(0).integers(0, 4095, 1024).tolist()
    assert len(text) == bundled.decoder.max_length == 1024
    right, certified, forward = check(bundled, [text, random])
    assert right == certified == 1.0
    assert forward < 6


def test_bundled_random_tokens(bundled):
    rows = np.random.default_rng(1).integers(0, 4095, (32, 24)).tolist()
    assert check(bundled, rows)[:2] == (1.0, 1.0)
