"""The promise of the whole project: what is certified is right, and what is not certified says so.

The judge (adversary.py) is independent of the engine: the model's own forward pass over the committed prefix and every
token of the vocabulary. The other files of this name hunt for "certified" on a wrong token.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert_fast import Exhaustive, Inverter, PriorOrder, Speculative, Status

from .adversary import AFTER, BEST, CERTIFIED, MISSING, SMALL, all_residuals, drafted, judge, some_families
from .families import Tokenizer, build, inverter, texts

pytestmark = pytest.mark.numeric

# ---- tokens that no candidate may be


@pytest.mark.slow
@given(st.sampled_from(["gpt2", "llama"]), st.lists(st.integers(0, 59), min_size=1, max_size=6))
def test_ids_past_the_tokenizer_are_never_proposed(family, truth):
    """Rows that pad the embedding matrix: a state of one of them is reproduced by no real token."""
    inv = Inverter(build(family, **SMALL), Tokenizer(50))
    states = inv.capture([truth] * 2)
    for recovery in inv.invert(states, drafted([min(i, 49) for i in truth], [0] * len(truth))):
        judge(inv, states[0], recovery)
        first = next((t for t, i in enumerate(truth) if i >= 50), len(truth))
        assert recovery.token_ids[:first].tolist() == truth[:first]
        assert recovery.first_failure == (first if first < len(truth) else None)
        assert recovery.text == " ".join(f"<{i}>" for i in recovery.token_ids)


def test_a_true_token_that_is_never_tried_is_not_certified():
    inv, truth = inverter("gpt2"), [250, 251, 252]
    for strategy in (PriorOrder(max_candidates=1), Speculative(max_candidates=1)):
        for s, recovery in zip(inv.capture([truth]), inv.invert(inv.capture([truth]), strategy), strict=True):
            judge(inv, s, recovery, truth)


# ---- what is said


def test_every_status_is_reached_and_right():
    inv, generator = inverter("gpt2"), torch.Generator().manual_seed(0)
    truth = texts(6)[0]
    hidden = inv.capture([truth])[0].hidden
    noise = torch.randn(hidden.shape, generator=generator) * hidden.square().mean().sqrt()

    (found,) = inv.invert(hidden)
    assert found.status.tolist() == [CERTIFIED] * 6

    (found,) = inv.invert(hidden + 3e-3 * noise)
    assert found.status.tolist() == [BEST] * 6
    assert found.token_ids.tolist() == truth

    broken = hidden.clone()
    broken[2] = noise[2]
    (found,) = inv.invert(broken)
    assert found.status.tolist() == [CERTIFIED, CERTIFIED, MISSING, AFTER, AFTER, AFTER]
    assert found.token_ids[:2].tolist() == truth[:2]

    for status in Status:
        assert status.label == status.name.lower().replace("_", " ")
        assert len(status.sentence) > 20


def test_a_recovery_says_where_and_why_it_failed():
    inv = inverter("gpt2")
    hidden = inv.capture(texts(5))[0].hidden.clone()
    (found,) = inv.invert(hidden)
    assert (found.certified, found.first_failure) == (True, None)
    assert found.raise_if_failed() is found

    hidden[3] = torch.randn(hidden.shape[1], generator=torch.Generator().manual_seed(0))
    (found,) = inv.invert(hidden)
    assert (found.certified, found.first_failure) == (False, 3)
    with pytest.raises(RuntimeError, match="position 3 is not found") as error:
        found.raise_if_failed()
    assert Status.NOT_FOUND.sentence in str(error.value)
    assert found.alternatives == {}
    assert found.cumulative_loss.tolist() == pytest.approx(np.cumsum(found.discrete_loss).tolist())
    assert found.cumulative_loss[3] > 1e6 * found.cumulative_loss[2]


@some_families
def test_the_figures_of_a_recovery_are_those_of_the_models_own_forward_pass(family):
    inv = inverter(family)
    truth, generator = texts(8)[0], torch.Generator().manual_seed(0)
    hidden = inv.capture([truth])[0].hidden
    hidden = hidden + 0.01 * hidden.norm(dim=-1, keepdim=True) * torch.randn(hidden.shape, generator=generator) / 8
    (found,) = inv.invert(hidden, Exhaustive())
    assert found.token_ids.tolist() == truth
    own = inv.decoder.capture(torch.tensor([truth]))[0]
    mse = (own - hidden).square().mean(-1)
    np.testing.assert_allclose(found.discrete_loss, mse, rtol=1e-3)
    np.testing.assert_allclose(found.residual, (own - hidden).norm(dim=-1) / hidden.norm(dim=-1), rtol=1e-3)


@some_families
def test_the_margin_is_the_distance_to_the_nearest_rival_or_a_lower_bound_of_it(family):
    inv, truth = inverter(family), texts(8)[0]
    states = inv.capture([truth])
    for strategy in ("auto", Exhaustive(block=512)):
        (found,) = inv.invert(states, strategy)
        assert (found.margin > 0).all()
        for t, token in enumerate(truth):
            residuals = all_residuals(inv, truth[:t], states[0].hidden[t])
            rival = residuals.sort().values[1] - residuals[token]
            assert found.margin[t] <= rival + 1e-4
            if strategy != "auto":
                assert found.margin[t] == pytest.approx(rival.item(), rel=1e-3)
