"""Gemma-3-270M, where it is at hand: a real vocabulary of 262,144 tokens, a BOS, and bf16.

`INVERT_FAST_GEMMA` names its folder (default: gemma-3-270m in ~/.cache/invert_fast_models).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from invert_fast import Inverter, States, Status
from invert_fast.cli import demo
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in

from .adversary import drafted

FOLDER = Path(os.environ.get("INVERT_FAST_GEMMA", "~/.cache/invert_fast_models/gemma-3-270m")).expanduser()

pytestmark = pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason=f"no Gemma-3-270M in {FOLDER}")


@pytest.fixture(scope="module")
def gemma():
    return Inverter.from_pretrained(FOLDER, device="cpu")


@pytest.mark.slow
def test_a_bf16_pass_is_certified_at_the_cost_of_a_few_rivals(gemma):
    truth = [gemma.encode(text, 17, special=True) for text in demo.sentences()[:6]]
    assert all(row[0] == gemma.decoder.tokenizer.bos_token_id for row in truth)
    model = model_in(gemma.decoder.model, "bfloat16")
    states = [States(capture(model, gemma.decoder.layer, torch.tensor([row]))[0]) for row in truth]
    found = gemma.invert(states, drafted(*truth))
    certified = np.concatenate([r.status == Status.CERTIFIED for r in found])
    assert all(r.token_ids.tolist() == row for r, row in zip(found, truth, strict=True))
    assert certified.mean() >= 0.97
    # of the text in the middle: how loud the loudest token is, and so how many others are tried before it is believed,
    # hangs on how a processor multiplies in bf16
    assert np.median([r.cost.forward_tokens for r in found]) <= 4 * 17


@pytest.mark.slow
def test_a_bf16_model_certifies_first_tokens_that_came_in_another_batch():
    """Alone, a BOS gives the same state bit for bit; among others, another by a hundredth."""
    inverter = Inverter.from_pretrained(FOLDER, device="cpu", dtype="bfloat16")
    truth = [inverter.encode(text, 17, special=True) for text in demo.sentences()[:6]]
    found = inverter.invert(inverter.capture(truth), drafted(*truth))
    assert all(r.token_ids.tolist() == row for r, row in zip(found, truth, strict=True))
    assert all(r.status[0] == Status.CERTIFIED for r in found)
    # between passes of one size there is no noise, nor any along the way to a rival: a wrong token was certified
    assert inverter.calibrate("bfloat16", "bfloat16").spread[1] > 0.1


@pytest.mark.slow
def test_the_nearest_row_of_a_real_vocabulary_is_found(gemma):
    tokens = torch.randperm(gemma.vocabulary.size, generator=torch.Generator().manual_seed(0))[:64]
    _, distance, _ = gemma.vocabulary.neighbours.of(tokens)
    exact = gemma.vocabulary.distances(tokens[:8]).masked_fill(~gemma.vocabulary.allowed, torch.inf)
    exact = exact.masked_fill(
        gemma.vocabulary.representative == gemma.vocabulary.representative[tokens[:8], None], torch.inf
    )
    torch.testing.assert_close(distance[:8, 0], exact.amin(-1), rtol=1e-3, atol=1e-5)
