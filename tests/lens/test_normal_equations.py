"""Least squares from sums: the same as from the rows, whatever the blocks, and calm where tokens are few."""

from __future__ import annotations

import pytest
import torch

from invert_fast.lens import normal_equations
from invert_fast.lens.normal_equations import NormalEquations

pytestmark = pytest.mark.numeric
D = 12


def pairs(count: int, noise: float = 0.1, seed: int = 0):
    """Embeddings, states and the states before, `[count, D]` each, and the M they were made with."""
    generator = torch.Generator().manual_seed(seed)
    true, context, left = (torch.randn(D, D, generator=generator) for _ in range(3))
    embeds, previous, drawn = (torch.randn(count, D, generator=generator) for _ in range(3))
    return embeds, embeds @ true + 0.3 * previous @ context + noise * drawn @ left, previous, true


def solved(*parts: slice, count: int = 600):
    embeds, states, previous, _ = pairs(count)
    sums = NormalEquations(D, D, D + 1)
    for part in parts:
        sums.add(embeds[part], states[part], previous[part])
    return sums.solve()


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_how_the_rows_come_does_not_matter(block, monkeypatch):
    whole = solved(slice(None))
    monkeypatch.setattr(normal_equations, "_BLOCK", block)
    for ours, theirs in zip(solved(slice(200, None), slice(200)), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4 * float(theirs.abs().max()))


def test_with_many_tokens_it_is_plain_least_squares():
    embeds, states, previous, _ = pairs(60_000)
    sums = NormalEquations(D, D, D + 1)
    sums.add(embeds, states, previous)
    project, gram = sums.solve()
    X = torch.cat([embeds, previous, torch.ones(len(embeds), 1)], -1).double()
    solution = torch.linalg.lstsq(X, states.double()).solution
    residual = states.double() - X @ solution
    precision_M = torch.linalg.solve(residual.T @ residual / len(X), solution[:D].T)
    torch.testing.assert_close(project[:D].double(), precision_M, rtol=0.02, atol=0.02 * float(precision_M.abs().max()))
    wanted = solution[:D] @ precision_M
    torch.testing.assert_close(gram.double(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.parametrize("count", [1, 5, 20, 30])
def test_with_fewer_tokens_than_unknowns_it_is_finite_and_still_tells_tokens_apart(count):
    embeds, states, previous, _ = pairs(count + 400, noise=0.02)
    sums = NormalEquations(D, D, D + 1)
    sums.add(embeds[:count], states[:count], previous[:count])
    project, gram = sums.solve()
    assert project.isfinite().all()
    assert gram.isfinite().all()
    assert torch.linalg.eigvalsh(gram.double()).min() > -1e-4 * gram.abs().max()
    if count >= 20:
        held = slice(count, None)
        features = torch.cat([states[held], previous[held], torch.ones(400, 1)], -1)
        scores = features @ project @ embeds[held].T - 0.5 * ((embeds[held] @ gram) * embeds[held]).sum(-1)
        assert (scores.argmax(-1) == torch.arange(400)).float().mean() > 20 / 400


def test_states_that_are_embeddings_are_read_almost_without_ridge():
    embeds = pairs(500)[0]
    sums = NormalEquations(D, D, 1)
    sums.add(embeds, embeds)
    project, gram = sums.solve()
    scores = torch.cat([embeds, torch.ones(500, 1)], -1) @ project @ embeds.T
    scores = scores - 0.5 * ((embeds @ gram) * embeds).sum(-1)
    assert torch.equal(scores.argmax(-1), torch.arange(500))


def test_more_pairs_can_be_added_after_a_solution():
    embeds, states, previous, _ = pairs(600)
    sums = NormalEquations(D, D, D + 1)
    sums.add(embeds[:100], states[:100], previous[:100])
    sums.solve()
    sums.add(embeds[100:], states[100:], previous[100:])
    assert sums.count == 600
    for ours, theirs in zip(sums.solve(), solved(slice(None)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4 * float(theirs.abs().max()))
