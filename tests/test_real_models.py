"""Real trained models on real text, where the folder with them is there, and the bundled one always."""

import json

import numpy as np
import pytest

from invert_fast import Inverter, Status
from invert_fast.cli import demo


@pytest.fixture(scope="module")
def bundled():
    return Inverter.from_pretrained("bundled")


def rows_of(inverter, documents, texts, length):
    return [row for row in (inverter.encode(d)[:length] for d in documents) if len(row) == length][:texts]


def check(inverter, rows, **capture):
    found = inverter.invert(inverter.capture(rows, **capture))
    right = np.concatenate([r.token_ids == np.array(row) for r, row in zip(found, rows, strict=True)])
    certified = np.concatenate([r.status == Status.CERTIFIED for r in found])
    assert not (certified & ~right).any(), "a wrong token was certified"
    return right.mean(), certified.mean(), sum(r.cost.forward_tokens for r in found) / len(right)


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bundled_coarse_states(bundled, dtype):
    right, certified, _ = check(bundled, [bundled.encode(s) for s in demo.sentences()], store_dtype=dtype)
    assert right >= 0.99
    assert certified >= 0.99


def test_bundled_computed_in_bf16():
    """States of a bf16 forward pass, inverted in fp32: ten times the noise of rounding alone, and still honest."""
    rows = [Inverter.from_pretrained("bundled").encode(s) for s in demo.sentences()[:12]]
    states = Inverter.from_pretrained("bundled", dtype="bfloat16").capture(rows, store_dtype="bfloat16")
    found = Inverter.from_pretrained("bundled").invert(states)
    for recovery, row in zip(found, rows, strict=True):
        right = recovery.token_ids == np.array(row)
        assert right[recovery.status == Status.CERTIFIED].all()
    assert np.mean([r.token_ids.tolist() == row for r, row in zip(found, rows, strict=True)]) > 0.9


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
