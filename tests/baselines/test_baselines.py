"""Every published loop recovers exactly, and none knows of the package."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from invert_fast.baselines import common, continuous_loop, sipit

from ..families import BLOCKS, build, make, texts
from .runs import METHODS, SMALL, brief, unreachable

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", METHODS)
def test_recovers_the_bundled_model(bundled, method):
    model, rows = bundled
    for row in rows:
        hidden = common.capture(model, row, prefix_by_prefix=method == "sipit")
        found = METHODS[method](model, hidden, **brief(method))
        assert found.token_ids == row
        assert all(found.accepted)
        assert found.seconds > 0


@pytest.mark.parametrize("layer", [1, -1, common.BEFORE_NORM])
@pytest.mark.parametrize("method", METHODS)
def test_recovers_a_llama(method, layer):
    model, row = make("llama"), texts(4)[0]
    hidden = common.capture(model, row, layer, prefix_by_prefix=method == "sipit")
    found = METHODS[method](model, hidden, layer, **brief(method))
    assert found.token_ids == row


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_recover_and_a_layer_that_is_not_there(small, method):
    empty = METHODS[method](small, unreachable(small)[:0])
    assert (empty.token_ids, empty.forward_tokens, empty.backward_tokens) == ([], 0, 0)
    for layer in ("final", BLOCKS + 1, -BLOCKS - 2):
        with pytest.raises(ValueError, match="before_norm"):
            METHODS[method](small, unreachable(small), layer)


def test_layers_are_those_of_hugging_face():
    for family in ("gpt2", "llama", "gemma"):
        model, row = make(family), texts(5)[0]
        body: Any = model.base_model
        with torch.no_grad():
            out = model(torch.tensor([row]), output_hidden_states=True)
            for layer in range(-BLOCKS - 1, BLOCKS + 1):
                torch.testing.assert_close(common.capture(model, row, layer), out.hidden_states[layer][0])
            norm = body.ln_f if family == "gpt2" else body.norm
            before = common.capture(model, row, common.BEFORE_NORM)
            assert not torch.allclose(before, out.hidden_states[-1][0], atol=0.1)
            torch.testing.assert_close(norm(before), out.hidden_states[-1][0])
        one_by_one = common.capture(model, row, prefix_by_prefix=True)
        torch.testing.assert_close(one_by_one, out.hidden_states[-1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["sipit", "continuous loop"])
def test_the_same_seed_gives_the_same_run(small, method):
    short = {"preset": continuous_loop.Preset(5, 5), "init": "token"} if method == "continuous loop" else {}
    row = texts(3, vocab=SMALL)[0]
    hidden = common.capture(small, row, prefix_by_prefix=True)
    state = torch.get_rng_state()

    def run(seed):
        r = METHODS[method](small, hidden, seed=seed, **short)
        return r.token_ids, r.iterations, r.tried, r.forward_tokens, r.backward_tokens

    assert run(1) == run(1)
    assert len({str(run(seed)) for seed in range(6)}) > 1
    assert torch.equal(torch.get_rng_state(), state), "the global generator is somebody else's"


def test_gradients_stay_out_of_the_model():
    model = build("llama", vocab=20).requires_grad_(True)
    sipit.invert(model, unreachable(model))
    continuous_loop.invert(model, unreachable(model), preset=continuous_loop.Preset(3, 2))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_baselines_do_not_know_of_the_package():
    """Whoever compares our speed with theirs must not find our code in them."""
    files = sorted((ROOT / "invert_fast" / "baselines").glob("*.py"))
    assert len(files) > len(METHODS)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} imports from another room"
                assert (node.module or "").split(".")[0] != "invert_fast" or node.level
            elif isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "invert_fast" for alias in node.names), path.name
