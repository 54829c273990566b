"""A likelihood kept to few directions: what it says in them, and that it pays where tokens were few."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from invert_fast import Inverter
from invert_fast.lens import linear_fit, narrow
from invert_fast.lens.linear import LinearLens
from invert_fast.lens.normal_equations import NormalEquations
from invert_fast.lens.sharpen import solved_again
from invert_fast.lens.store import linear_lens

from ..families import VOCAB, WIDTH, build, inverter
from ..ops.inputs import random


def scorer(directions: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """project and gram of a likelihood with h = M e + ε, whose tokens differ in so many directions."""
    M, noise = random(WIDTH, WIDTH, seed=1).double(), random(WIDTH, WIDTH, seed=2).double()
    M[:, directions:] = 0.0
    precision = torch.linalg.inv(noise @ noise.T + torch.eye(WIDTH))
    return (precision @ M).float(), (M.T @ precision @ M).float()


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_in_all_directions_it_is_the_same(family):
    embedding, (project, gram) = inverter(family).vocabulary.embedding, scorer()
    assert (embedding.factor == 1.0) is (family == "llama")
    found = narrow.narrowed(embedding, project, gram, WIDTH)
    for ours, theirs in zip(found, (project, gram), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_directions_in_which_no_token_differs_go_first():
    embedding, (project, gram) = inverter("llama").vocabulary.embedding, scorer(directions=20)
    found = narrow.narrowed(embedding, project, gram, 20)
    torch.testing.assert_close(found[1], gram, rtol=1e-3, atol=1e-3 * float(gram.abs().max()))


def test_fewer_directions_tell_less_of_every_token():
    embedding, (project, gram) = inverter("llama").vocabulary.embedding, scorer()
    rows = embedding[torch.arange(VOCAB)]
    grams = [narrow.narrowed(embedding, project, gram, rank)[1] for rank in (8, 16, 32, 64)]
    energies = torch.stack([((rows @ one) * rows).sum(-1) for one in grams])
    assert bool((energies[:-1] <= energies[1:] + 1e-3 * energies.max()).all())
    assert torch.linalg.matrix_rank(grams[0].double(), rtol=1e-5) == 8


def made(tokens: int, directions: int) -> tuple[LinearLens, torch.Tensor, torch.Tensor]:
    """A lens solved from so many tokens of states that tell them apart in a few directions of many; other texts
    `[b, T]`, and their states."""
    vocabulary, generator = inverter("llama").vocabulary, torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(WIDTH, WIDTH, generator=generator))
    strength = torch.full((WIDTH,), 0.03)
    strength[:directions] = 1.5
    M = left @ strength.diag() @ right / float(vocabulary.embedding[torch.arange(VOCAB)].std())

    def sample(texts: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(0, VOCAB, (texts, 10), generator=generator)
        noise = 0.7 * torch.randn(*ids.shape, WIDTH, generator=generator)
        return ids, vocabulary.embedding[ids] @ M + noise

    ids, states = sample(tokens // 10)
    sums = NormalEquations(WIDTH, WIDTH, WIDTH + 1)
    sums.add(vocabulary.embedding[ids[:, 1:].flatten()], states[:, 1:].flatten(0, 1), states[:, :-1].flatten(0, 1))
    none = torch.zeros(WIDTH, WIDTH)
    parts = {"first": (torch.zeros(WIDTH + 1, WIDTH), none), "rest": sums.solve(), "change": (none, none)}
    lens = LinearLens(vocabulary, parts)
    lens.sums = sums
    return lens, *sample(200)


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.setattr(narrow, "_RANKS", (8, 16, 32))


def right(lens: LinearLens, ids: torch.Tensor, states: torch.Tensor) -> float:
    return (lens.draft(states) == ids)[:, 1:].float().mean().item()


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(
    ("tokens", "directions", "wanted"), [(300, 8, 8), (600, 8, 8), (300, 16, 16), (9600, 16, None)]
)
def test_as_many_directions_are_kept_as_draft_most_right(tokens, directions, wanted):
    lens, ids, states = made(tokens, directions)
    nothing_onward = SimpleNamespace(ends=lambda _: None)
    found = narrow.best_rank(nothing_onward, lens, ids[:100], states[:100])  # type: ignore[arg-type]
    assert found == wanted
    assert narrow.wide(tokens, WIDTH) is (wanted is not None)
    if found is not None:
        kept = narrow.kept_to(lens, found)
        assert right(kept, ids[100:], states[100:]) > right(lens, ids[100:], states[100:]) + 0.02
        assert kept.rank == found
        assert kept.sums is lens.sums


def test_use_keeps_the_rank_until_tokens_are_many():
    lens, _, _ = made(300, 8)
    kept, sums = narrow.kept_to(lens, 8), lens.sums
    assert sums is not None
    again = solved_again(kept, sums, used=0)
    assert again is not None
    assert again.rank == 8
    assert torch.equal(again.parts["rest"].gram, kept.parts["rest"].gram)
    sums.sums *= 40
    sums.count *= 40
    grown = solved_again(kept, sums, used=0)
    assert grown is not None
    assert grown.rank is None
    assert torch.linalg.matrix_rank(grown.parts["rest"].gram.double(), rtol=1e-7) > 8


@pytest.mark.usefixtures("small_fits")
def test_a_rank_is_kept_with_the_lens(monkeypatch):
    monkeypatch.setattr(linear_fit, "MANY_TOKENS", 100)
    monkeypatch.setattr(linear_fit, "wide", lambda *_: True)
    monkeypatch.setattr(linear_fit, "best_rank", lambda *_: 16)
    inv = Inverter(build("llama"))
    lens, again = (linear_lens(inv.decoder, inv.vocabulary) for _ in range(2))
    assert lens is not again
    assert lens.rank == again.rank == 16
    assert torch.equal(again.parts["rest"].gram, lens.parts["rest"].gram)
    assert torch.linalg.matrix_rank(again.parts["rest"].gram.double(), rtol=1e-5) <= 16
