"""Each defence does what its name says, by its own measure, and the same again from the same seed."""

from __future__ import annotations

import math

import pytest
import torch

from invert_fast import InputError, States
from invert_fast.defences import (
    DropRows,
    Gaussian,
    Laplace,
    Private,
    Quantise,
    Rotation,
    TopK,
    parse_defence,
    rotation_from_pairs,
)
from invert_fast.defences.noise import gaussian_delta, gaussian_sigma
from invert_fast.defences.spec import NAMES

EVERY = [
    *(Gaussian(0.05), Laplace(0.3), Private(8.0, 4.0, 1e-5), Quantise(3), TopK(5), TopK(0.25)),
    *(Rotation(), Rotation(2**62 + 1), DropRows(0.4), Gaussian(0.1234567890123)),
]
every = pytest.mark.parametrize("defence", EVERY, ids=str)


def rows(count: int = 400, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Rows of very different lengths, as those of a first position and the others are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.logspace(-1, 2, count)[:, None]


@every
def test_what_is_written_is_read(defence):
    assert parse_defence(defence.spec) == defence


def test_every_name_is_tried_here():
    assert {defence.name for defence in EVERY} == set(NAMES)


@every
def test_a_seed_tells_all_that_is_random(defence):
    states = States(rows(20).to(torch.bfloat16), "block:1", "bfloat16", "float32", "m")
    given, again = defence.apply(states, 3), defence.apply(states, 3)
    assert torch.equal(given.hidden, again.hidden)
    assert given.hidden.dtype == torch.bfloat16
    assert (given.layer, given.dtype, given.compute_dtype, given.model) == ("block:1", "bfloat16", "float32", "m")
    assert len(given) == len(defence.kept(20, 3))
    random = isinstance(defence, (Gaussian, Laplace, Private, DropRows))
    assert torch.equal(given.hidden, defence.apply(states.hidden, 3))
    assert random != torch.equal(given.hidden, defence.apply(states.hidden, 4))
    first, second = defence.apply_all([states, states], 3)
    assert torch.equal(first.hidden, given.hidden)
    assert torch.equal(second.hidden, defence.apply(states.hidden, 4))


@pytest.mark.parametrize(("kind", "fourth"), [(Gaussian, 3.0), (Laplace, 6.0)])
def test_noise_is_as_loud_as_it_says_whatever_the_length_of_a_row(kind, fourth):
    plain = rows()
    noise = (kind(0.2).apply(plain) - plain) / plain.square().mean(-1, keepdim=True).sqrt()
    assert noise.square().mean().sqrt() == pytest.approx(0.2, rel=0.03)
    assert noise.pow(4).mean() / noise.square().mean() ** 2 == pytest.approx(fourth, rel=0.15)
    assert torch.equal(kind(0.0).apply(plain), plain)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 1e-5), (1.0, 1e-3), (8.0, 1e-6), (300.0, 1e-5)])
def test_the_analytic_mechanism_is_as_private_as_it_says(epsilon, delta):
    """delta = ∫ max(0, p − e^ε q) of two normals that far apart: the definition, by quadrature."""
    apart = 3.0
    sigma = gaussian_sigma(epsilon, delta, apart)
    x = torch.linspace(-20 * sigma, 20 * sigma + apart, 2_000_001, dtype=torch.float64)
    log_p, log_q = (
        -((x - mean) ** 2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)) for mean in (0, apart)
    )
    lost = (log_p.exp() - (epsilon + log_q).exp()).clamp_min(0)
    assert torch.trapezoid(lost, x).item() == pytest.approx(delta, rel=1e-4)
    assert gaussian_delta(0.99 * sigma, epsilon, apart) > delta
    if epsilon < 1:  # where the classic formula holds, it asks for more
        assert sigma < apart * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def test_private_rows_are_clipped_and_get_that_noise():
    defence, plain = Private(5.0, 2.0, 1e-5), rows()
    assert defence.sigma == gaussian_sigma(2.0, 1e-5, 10.0)
    noise = defence.apply(plain) - plain * (5.0 / plain.norm(dim=-1, keepdim=True)).clamp_max(1.0)
    assert noise.square().mean().sqrt() == pytest.approx(defence.sigma, rel=0.03)


def test_so_many_bits_and_no_more():
    plain = rows()
    given = Quantise(3).apply(plain)
    assert max(len(row.unique()) for row in given) <= 8
    step = (plain.amax(-1) - plain.amin(-1)) / 7
    assert ((given - plain).abs().amax(-1) <= 0.5001 * step).all()
    assert torch.equal(Quantise(4).apply(torch.ones(2, 5)), torch.ones(2, 5))


@pytest.mark.parametrize(("defence", "count"), [(TopK(5), 5), (TopK(0.25), 12), (TopK(1000), 48), (TopK(1), 1)])
def test_the_largest_numbers_stay(defence, count):
    plain = rows()
    given = defence.apply(plain)
    assert ((given != 0).sum(-1) == count).all()
    assert torch.equal(given[given != 0], plain[given != 0])
    assert (given.abs().amax(-1) == plain.abs().amax(-1)).all()


def test_dropped_rows_are_as_many_as_said_and_never_all():
    plain, defence = rows(), DropRows(0.3)
    kept = defence.kept(len(plain), 5)
    assert torch.equal(defence.apply(plain, 5), plain[kept])
    assert len(kept) / len(plain) == pytest.approx(0.7, abs=0.08)
    assert all(len(DropRows(0.999).kept(3, seed)) == 1 for seed in range(20))
    assert DropRows(0.5).apply(plain[:0]).shape == (0, 48)


def test_a_rotation_is_undone_by_its_key_and_found_from_as_many_rows_as_a_state_is_wide():
    secret, plain = Rotation(7), rows(400) / rows(400).norm(dim=-1, keepdim=True)
    matrix = secret.matrix(48)
    assert torch.allclose(matrix @ matrix.T, torch.eye(48, dtype=torch.float64), atol=1e-12)
    given = secret.apply(plain)
    assert torch.allclose(secret.undo(given), plain, atol=1e-6)
    assert torch.allclose(secret.received(States(given)).hidden, plain, atol=1e-6)
    assert not torch.allclose(Rotation(8).undo(given), plain, atol=0.1)
    assert torch.allclose(rotation_from_pairs(given[:48], plain[:48]), matrix, atol=1e-4)
    fewer = rotation_from_pairs(given[:40], plain[:40])
    assert not torch.allclose(fewer, matrix, atol=0.1)
    assert torch.allclose(plain[:40].double() @ fewer, given[:40].double(), atol=1e-5)
    with pytest.raises(InputError, match=r"\[48\]|\[3, 48\]"):
        rotation_from_pairs(given[:3], plain[:4])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gausian:0.05", "unknown, expected one of gaussian:0.05"),
        ("gaussian", "expected gaussian:0.05"),
        ("gaussian:loud", "expected gaussian:0.05"),
        ("gaussian:0.1:2", "expected gaussian:0.05"),
        ("gaussian:-1", "no strength"),
        ("gaussian:nan", "no strength"),
        ("laplace:inf", "no strength"),
        ("private:8:0:1e-5", "no mechanism"),
        ("private:8:1:1", "no mechanism"),
        ("private:8", "clip, epsilon, delta"),
        ("quantise:2.5", "quantise:4"),
        ("quantise:0", "whole bits from 1 to 16"),
        ("topk:0", "no choice"),
        ("topk:2.5", "no choice"),
        ("rotation:-1", "whole number of 0 or more"),
        ("drop:1", "no share"),
    ],
)
def test_what_is_no_defence_is_refused_with_what_was_wanted(text, said):
    with pytest.raises(InputError, match=said):
        parse_defence(text)
