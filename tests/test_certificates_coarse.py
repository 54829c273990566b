"""Coarse states (bf16 passes, int8 weights) and the hardest rivals there are: no wrong token is certified."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invert_fast import Inverter, States, Status
from invert_fast.cli import demo
from invert_fast.model.decoder import capture
from invert_fast.model.numerics import model_in

from .adversary import CERTIFIED, all_residuals, drafted
from .families import build, inverter, texts

pytestmark = pytest.mark.numeric


@functools.cache
def bundled() -> Inverter:
    return Inverter.from_pretrained("bundled")


def passed(inv: Inverter, row: list[int], precision: str = "bfloat16") -> Tensor:
    """States of one text by a pass in another precision, `[T, D]`."""
    return capture(model_in(inv.decoder.model, precision), inv.decoder.layer, torch.tensor([row]))[0]


def never_wrong(inv: Inverter, states: list[States], drafts: list[list[int]], truth: list[list[int]]) -> float:
    """Share certified; no wrong token is."""
    found = inv.invert(states, drafted(*drafts))
    for recovery, row in zip(found, truth, strict=True):
        for t in np.flatnonzero(recovery.status == CERTIFIED).tolist():
            assert int(recovery.token_ids[t]) == row[t], f"position {t}"
            assert recovery.error_bound[t] <= 1.01e-9
        assert (recovery.error_bound[recovery.status != CERTIFIED] == 1.0).all()
    return float(np.mean(np.concatenate([r.status for r in found]) == CERTIFIED))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma", "phi3"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_drafts_of_the_nearest_wrong_state(family, precision):
    """At every position the very token whose state comes nearest to the right one's, by the model's own pass."""
    inv, truth = inverter(family), texts(*[7] * 4, seed=11)
    hidden = inv.capture(truth)
    drafts = []
    for states, row in zip(hidden, truth, strict=True):
        away = [all_residuals(inv, row[:t], states.hidden[t]).index_fill(0, torch.tensor(row[t]), 9) for t in range(7)]
        drafts.append([int(a.argmin()) for a in away])
    states = [States(passed(inv, row, precision), compute_dtype=precision) for row in truth]
    assert never_wrong(inv, states, drafts, truth) >= 0.99


@pytest.mark.slow
def test_drafts_of_the_nearest_wrong_state_of_a_trained_model():
    inv = bundled()
    truth = [inv.encode(s)[:4] for s in demo.sentences()[:2]]
    drafts = []
    for states, row in zip(inv.capture(truth), truth, strict=True):
        away = [
            all_residuals(inv, row[:t], states.hidden[t]).index_fill(0, torch.tensor(row[t]), 9)
            for t in range(len(row))
        ]
        drafts.append([int(a[: inv.decoder.usable_ids].argmin()) for a in away])
    states = [States(passed(inv, row)) for row in truth]
    assert never_wrong(inv, states, drafts, truth) >= 0.95


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 2)
@given(st.sampled_from(["gpt2", "llama", "gemma"]), st.floats(0, 0.49), st.integers(0, 50))
def test_states_nudged_towards_a_wrong_token(family, share, seed):
    """Up to half-way the right token is still the nearest: it may be certified or not, the other may not."""
    inv, (row,) = inverter(family), texts(6, seed=seed)
    hidden, other = inv.capture([row])[0].hidden, [(t + 1 + seed) % 300 for t in row]
    wrong = torch.stack([inv.decoder.capture(torch.tensor([[*row[:t], other[t]]]))[0, t] for t in range(6)])
    nudged = (hidden + share * (wrong - hidden)).bfloat16()
    for computed in ("bfloat16", "float32"):
        states = [States(nudged, compute_dtype=computed)]
        never_wrong(inv, states, [other], [row])
        never_wrong(inv, states, [row], [row])


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 2)
@given(st.sampled_from(["gpt2", "llama"]), st.floats(-4, -0.5).map(lambda x: 10.0**x), st.integers(0, 20))
def test_states_of_a_sibling_of_the_model(family, change, seed):
    """Weights that moved a little, as fine-tuning moves them: what is certified in spite of it is right."""
    inv, truth = inverter(family), texts(8, 8, seed=seed)
    sibling, generator = copy.deepcopy(inv.decoder.model), torch.Generator().manual_seed(seed)
    for parameter in sibling.parameters():
        parameter.add_(change * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator))
    hidden = [capture(sibling, inv.decoder.layer, torch.tensor([row]))[0] for row in truth]
    for dtype in (torch.float32, torch.bfloat16):
        never_wrong(inv, [States(h.to(dtype)) for h in hidden], truth, truth)
        inv_found = inv.invert([States(h.to(dtype)) for h in hidden])
        for recovery, row in zip(inv_found, truth, strict=True):
            right = recovery.token_ids == row
            first = len(row) if right.all() else int(np.flatnonzero(~right)[0])
            assert not (recovery.status[first:] == CERTIFIED).any(), "a wrong token, or one behind it"


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 2)
@given(st.floats(-6, 0).map(lambda x: 10.0**x), st.sampled_from([2, 6, 20]), st.integers(0, 20))
def test_clusters_of_near_rows_at_any_distance(relative, cluster, seed):
    model = build("llama", seed % 3)
    table, generator = model.get_input_embeddings().weight, torch.Generator().manual_seed(seed)
    for k in range(1, cluster):
        way = torch.randn(64, generator=generator)
        table[k] = table[0] + relative * table[0].norm() * way / way.norm()
    inv, truth = Inverter(model), texts(*[6] * 4, vocab=cluster, seed=seed)
    drafts = [[(t + 1) % cluster for t in row] for row in truth]
    never_wrong(inv, [States(passed(inv, row)) for row in truth], drafts, truth)


def test_states_that_say_fp32_and_are_not_are_not_believed():
    """Told fp32, and nothing in their numbers says otherwise: noise of a bf16 pass is no noise of fp32."""
    inv, truth = inverter("llama"), texts(8)
    hidden = passed(inv, truth[0]).float()
    (found,) = inv.invert(States(hidden + 1e-7 * hidden.norm(dim=-1, keepdim=True) / 8))
    assert CERTIFIED not in found.status
    assert found.token_ids.tolist() == truth[0]
    assert (found.status == Status.BEST_MATCH).all()
