"""Whole texts by likelihood and prior: posteriors are exact where all sequences can be gone through, and noise costs
fewer tokens than it does the nearest one at every step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from invert_fast import Beam, Inverter, Noise, Recovery, Status
from invert_fast.defences import Gaussian
from invert_fast.lens import choose_lens
from invert_fast.strategies import beam
from invert_fast.strategies.found import columns_of, leading, once
from invert_fast.strategies.hypotheses import Hypotheses

from ..families import build, exact, inverter, texts

TOY, LENGTH = 7, 3
ALL = Beam(width=TOY**LENGTH, candidates=TOY, worth=1e-12, drop=1e9)
ARGMIN = Beam(width=1, prior=0.0)


@pytest.fixture(scope="module")
def toy() -> Inverter:
    return Inverter(build("gpt2", vocab=TOY, width=32, blocks=2))


@pytest.fixture(scope="module")
def bundled() -> Inverter:
    return Inverter.from_pretrained("bundled", device="cpu")


def exact_posterior(inv: Inverter, rows: torch.Tensor, noise: Noise) -> torch.Tensor:
    """p(x_t = v | all rows) `[T, V]`, by all sequences there are and the model's own forward pass."""
    ids = torch.tensor(list(itertools.product(range(TOY), repeat=LENGTH)))
    states = inv.decoder.capture(ids).double()
    away = rows.double() - states
    sigma = noise.sigma * states.square().mean(-1).sqrt()
    if noise.kind == "gaussian":
        fits = (-0.5 * (away / sigma[..., None]).square() - sigma[..., None].log()).sum(-1)
    else:
        fits = (-(2**0.5) * away.abs() / sigma[..., None] - sigma[..., None].log()).sum(-1)
    prior = inv.decoder.model(ids).logits.double().softmax(-1) * 0.99 + 0.01 / TOY  # a little of an even one
    said = prior[:, :-1].log().gather(2, ids[:, 1:, None])[..., 0].sum(-1)
    weight = (fits.sum(-1) + said).softmax(0)
    return torch.stack([torch.stack([weight[ids[:, t] == v].sum() for v in range(TOY)]) for t in range(LENGTH)])


@pytest.mark.parametrize("noise", [Noise("gaussian", 0.7), Noise("gaussian", 2.0), Noise("laplacian", 1.2)])
def test_posteriors_are_those_of_all_sequences(toy, noise):
    from invert_fast.defences import Laplace

    defence = (Gaussian if noise.kind == "gaussian" else Laplace)(noise.sigma)
    unsure = 0
    for seed in range(3):
        states = defence.apply(toy.capture(texts(LENGTH, vocab=TOY, seed=seed))[0], seed)
        (found,) = toy.invert(states, ALL, noise=noise)
        truth = exact_posterior(toy, states.hidden, noise)
        own = truth[torch.arange(LENGTH), torch.tensor(found.token_ids)]
        np.testing.assert_allclose(found.posterior, own, atol=2e-4)
        unsure += int((own < 0.95).sum())
    assert unsure >= 2, "there was something to be unsure of"


def test_posteriors_of_a_large_vocabulary_with_short_lists(toy, monkeypatch):
    monkeypatch.setattr(beam, "MANY_TOKENS", TOY)
    noise = Noise("gaussian", 1.0)
    states = Gaussian(1.0).apply(toy.capture(texts(LENGTH, vocab=TOY, seed=8))[0], 8)
    (found,) = toy.invert(states, ALL, noise=noise)
    own = exact_posterior(toy, states.hidden, noise)[torch.arange(LENGTH), torch.tensor(found.token_ids)]
    np.testing.assert_allclose(found.posterior, own, atol=2e-4)


def test_a_narrow_beam_is_near_the_exact_posterior(toy):
    noise = Noise("gaussian", 0.7)
    states = Gaussian(0.7).apply(toy.capture(texts(LENGTH, vocab=TOY, seed=5))[0], 5)
    (found,) = toy.invert(states, Beam(width=16), noise=noise)
    own = exact_posterior(toy, states.hidden, noise)[torch.arange(LENGTH), torch.tensor(found.token_ids)]
    np.testing.assert_allclose(found.posterior, own, atol=0.1)


def test_what_was_given_up_keeps_its_share():
    """Two beginnings of one text, 3 : 1; the lighter one is given up, and goes on counting where it said something."""
    one = Hypotheses(1, 2, 2)
    one.give_up(torch.tensor([0]), torch.tensor([[0.25]]).double().log(), torch.tensor([[[7, 0]]]), torch.tensor([[1]]))
    one.weight[0, 0] = float(np.log(0.75))
    found = one.marginals(0, torch.tensor([[5, 6], [0, 0]]), 0)
    assert found.ids.tolist() == [5, 6]
    assert found.shares[0] == pytest.approx({5: 0.75, 7: 0.25})
    assert found.shares[1] == pytest.approx({6: 1.0}), "it said nothing of the second position"


@pytest.mark.parametrize(("family", "layer"), [("gpt2", -1), ("llama", "block:1"), ("gemma", -1), ("gpt2", 0)])
def test_states_without_noise_are_exact(family, layer):
    truth, inv = texts(5, 1, 0, 9), inverter(family, layer)
    assert exact(inv.invert(inv.capture(truth), "beam"), truth)


def right(found: list[Recovery], truth: list[list[int]]) -> float:
    return float(np.mean([r.token_ids == np.array(row) for r, row in zip(found, truth, strict=True)]))


def test_it_is_right_more_often_than_the_nearest_token_and_the_lens(bundled):
    """Noise as long as the states themselves."""
    truth = [row[:24] for row in bundled_rows(bundled, 6)]
    noise, defence = Noise("gaussian", 1.0), Gaussian(1.0)
    states = [defence.apply(one, i) for i, one in enumerate(bundled.capture(truth))]
    believed, nearest = (bundled.invert(states, way, noise=noise) for way in ("auto", ARGMIN))
    drafts = [choose_lens(bundled.decoder, bundled.vocabulary).draft(one.hidden[None])[0] for one in states]
    read = sum(int((ids == torch.tensor(row)).sum()) for ids, row in zip(drafts, truth, strict=True))
    assert right(believed, truth) >= right(nearest, truth)
    assert right(believed, truth) >= read / sum(map(len, truth)) + 0.05
    stated = np.concatenate([r.posterior for r in believed if r.posterior is not None])
    assert abs(stated.mean() - right(believed, truth)) < 0.12
    assert all(r.alternatives[t] for r in believed for t in np.flatnonzero(r.status == Status.AMBIGUOUS).tolist())


def bundled_rows(inv: Inverter, count: int) -> list[list[int]]:
    from invert_fast.cli import demo

    return [row for row in map(inv.encode, demo.sentences()) if len(row) >= 12][:count]


def test_other_strategies_state_no_posterior(bundled):
    (found,) = bundled.invert(bundled.capture(["The ferry leaves."]))
    assert found.posterior is None


@pytest.mark.parametrize("blind", [False, True], ids=["in the list", "in no list"])
def test_tokens_of_a_large_vocabulary_that_nothing_drafts_are_found(bundled, blind, monkeypatch):
    """Random tokens, a third of them drafted wrong: by the list of the lens or, where that has none of them, by what
    those tried tell of all others."""
    drafted = beam.draft_lists

    def wrong(*arguments):
        found = drafted(*arguments)
        found.ids[:, 2::3] = torch.arange(3, 67) if blind else found.ids[:, 2::3].roll(1, -1)
        return found

    monkeypatch.setattr(beam, "MANY_TOKENS", 1)
    monkeypatch.setattr(beam, "draft_lists", wrong)
    size, generator = bundled.vocabulary.size, torch.Generator().manual_seed(0)
    truth = torch.randint(300, size, (2, 12), generator=generator).tolist()
    rows = [Gaussian(0.05).apply(states, i).hidden for i, states in enumerate(bundled.capture(truth))]
    found = bundled.invert(rows, Beam(listed=72), noise=Noise("gaussian", 0.05))
    assert [r.token_ids.tolist() for r in found] == truth
    cost = sum(r.cost.forward_tokens for r in found) / 24
    assert (25 < cost < 80) if blind else cost < 16


def test_what_is_tried_beyond_a_list_stands_in_front():
    ids = once(torch.tensor([[5, 7, 5, -1, 9, 7], [1, 2, 3, 4, 5, 6]]))
    assert ids.tolist() == [[5, 7, -1, -1, 9, -1], [1, 2, 3, 4, 5, 6]]
    assert leading(ids).tolist() == [[5, 7, 9, -1, -1, -1], [1, 2, 3, 4, 5, 6]]
    assert columns_of(leading(ids)).tolist() == [[0, 1, 2, -1, -1, -1], [0, 1, 2, 3, 4, 5]]
