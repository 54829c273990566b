"""The metric of the noise, and the two inequalities that coarse states are judged by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from invert_fast.engine.noise import metric_of
from invert_fast.engine.tolerances import ERROR, Tolerances, deviations

from ..families import inverter

pytestmark = pytest.mark.numeric


def planted(rows: int = 400, width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise that lies mostly along two directions, and those."""
    generator = torch.Generator().manual_seed(0)
    ways = torch.linalg.qr(torch.randn(width, 2, generator=generator)).Q
    noise = torch.randn(rows, width, generator=generator)
    return noise + 20 * torch.randn(rows, 2, generator=generator) @ ways.T, ways


def test_the_directions_of_the_noise_are_found_and_held():
    noise, ways = planted()
    metric = metric_of(noise, noise)
    count = metric.directions.shape[-1]
    eye = metric.directions[1].T @ metric.directions[1]
    torch.testing.assert_close(eye, torch.eye(count), rtol=1e-4, atol=1e-5)
    along, across = ways[:, 0], torch.randn(48, generator=torch.Generator().manual_seed(1))
    across = across - ways @ (ways.T @ across)
    across = across / across.norm()
    first = torch.zeros(2, dtype=torch.bool)
    lengths = metric.lengths(torch.stack([along, across]), torch.ones(2), first)
    assert lengths[0] < 0.2, "a direction full of noise counts little"
    assert lengths[1] > 0.7, "one with little noise counts"


def test_lengths_are_those_of_the_formula():
    noise, _ = planted()
    metric = metric_of(noise[:100], noise)
    rows = torch.randn(6, 48, generator=torch.Generator().manual_seed(2))
    first = torch.tensor([True, False, True, False, False, True])
    found = metric.lengths(rows, rows.norm(dim=-1), first)
    for row, at, length in zip(rows.double(), (~first).int().tolist(), found.tolist(), strict=True):
        ways, held = metric.directions[at].double(), metric.held[at].double()
        square = row @ row - sum(h * (row @ way) ** 2 for h, way in zip(held, ways.T, strict=True))
        assert length == pytest.approx(math.sqrt(square), rel=1e-4)


def test_cosines_agree_with_lengths():
    noise, _ = planted()
    metric = metric_of(noise, noise)
    a, b = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(3))
    none = torch.zeros(5, dtype=torch.bool)
    length = [metric.lengths(x, x.norm(dim=-1), none) for x in (a, b, a + b)]
    dot = (length[2] ** 2 - length[0] ** 2 - length[1] ** 2) / 2
    torch.testing.assert_close(metric.cosines(a, b, 1), dot / (length[0] * length[1]), rtol=1e-3, atol=1e-4)


def test_noise_of_one_row_and_no_noise_at_all_are_borne():
    for noise in (torch.zeros(40, 16), torch.randn(1, 16), torch.zeros(1, 16)):
        metric = metric_of(noise, noise)
        rows = torch.randn(3, 16)
        assert metric.lengths(rows, rows.norm(dim=-1), torch.zeros(3, dtype=torch.bool)).isfinite().all()


coarse = st.builds(
    Tolerances,
    noise=st.just((0.2, 0.1)),
    tolerance=st.just((0.2, 0.1)),
    wrong=st.just((0.3, 0.3)),
    slope=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    typical=st.just((0.02, 0.01)),
    power=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    knee=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    bend=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    near=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    within=st.just((0.3, 0.3)),
    spread=st.tuples(st.floats(0.02, 0.4), st.floats(0.02, 0.4)),
    metric=st.just(inverter("llama").calibrate("bfloat16", "bfloat16").metric),
)


@given(coarse, st.floats(1e-4, 0.2), st.sampled_from([0, 5]), st.sampled_from([10, 4096, 262_144]))
def test_what_is_out_of_the_question_is_as_unlikely_as_is_said(tolerances, residual, position, count):
    z, at = deviations(count), tolerances.at(torch.tensor([position]))
    r = torch.tensor([residual])
    far, none = torch.tensor([torch.inf]), torch.tensor([1e30])
    reach, required = at.reach(r, z), at.required(r, z)
    assert reach > r
    assert required > r
    assert at.error(r, none, reach * 1.001, count) <= ERROR
    assert at.error(r, required * 1.001, far, count) <= ERROR
    assert at.error(r, none, reach * 0.9, count) > ERROR
    assert at.error(r, required * 0.9, far, count) > ERROR
    # by the definition: the part of the noise along the direction, in deviations
    sigma = float(at.deviation(r))
    d, s = float(required), math.sqrt(float(required) ** 2)  # a rival whose own residual would be nothing
    assert (d * d - residual**2) / (2 * d) == pytest.approx(z * sigma, rel=1e-3)
    assert math.sqrt(float(reach) ** 2 - residual**2) == pytest.approx(z * sigma, rel=1e-2)
    assert s >= residual


@given(coarse, st.floats(1e-4, 0.2), st.floats(1e-4, 2.0), st.sampled_from([0, 5]))
def test_the_radius_is_the_bound_turned_round(tolerances, residual, apart, position):
    """No token outside the radius can be nearer than that: one that can is one that is never tried."""
    at, r = tolerances.at(torch.tensor([position])), torch.tensor([residual])
    radius = at.radius(torch.tensor([apart]), r)
    for beyond in (1.0001, 1.1, 2.0, 10.0):
        assert at.bound(radius * beyond, r) >= apart * 0.999
    rows = torch.linspace(1e-3, 3, 400)[:, None]
    bounds = at.bound(rows, r)
    inside = bounds < apart * 0.999
    assert (rows[inside] <= radius * 1.001).all()
