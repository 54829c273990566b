"""Noise of a known level: nothing wrong is certified, whatever level was stated; and the level can be estimated."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invert_fast import InputError, Inverter, Noise, States, Status
from invert_fast.cli import demo
from invert_fast.defences import Gaussian, Laplace
from invert_fast.engine.noisy import laplacian_deviations, laplacian_tail, normal_of, student
from invert_fast.engine.tolerances import deviations
from invert_fast.storage.noise import noise_named

from ..adversary import drafted
from ..families import inverter, texts

pytestmark = pytest.mark.numeric


@functools.cache
def bundled() -> Inverter:
    return Inverter.from_pretrained("bundled", device="cpu")


@functools.cache
def captured(count: int = 2, length: int = 10) -> tuple[list[list[int]], list[States]]:
    truth = [row[:length] for row in map(bundled().encode, demo.sentences()) if len(row) >= length][:count]
    return truth, bundled().capture(truth)


def certified(inv: Inverter, states: list[States], truth: list[list[int]], strategy, noise: Noise) -> float:
    """Share certified; none is wrong, and each says how likely that is."""
    found = inv.invert(states, strategy, noise=noise)
    for recovery, row in zip(found, truth, strict=True):
        sure = recovery.status == Status.CERTIFIED
        assert (recovery.token_ids == np.array(row))[sure].all(), f"{noise}: certified and wrong"
        assert (recovery.error_bound[sure] <= 1.01e-9).all()
        assert (recovery.error_bound[~sure] == 1.0).all()
        assert sure.cumprod().sum() == sure.sum(), "nothing is certified behind what is not"
        for t in np.flatnonzero(recovery.status == Status.AMBIGUOUS).tolist():
            assert recovery.alternatives[t]
    return float(np.mean(np.concatenate([r.status for r in found]) == Status.CERTIFIED))


@settings(max_examples=settings().max_examples // 5)
@given(
    st.floats(-2.3, -0.3).map(lambda power: 10**power),
    st.sampled_from([0.05, 0.3, 0.7, 0.9, 1.0, 1.0, 1.5, 4.0]),
    st.sampled_from(["gaussian", "gaussian", "laplacian"]),
    st.integers(0, 99),
)
def test_no_wrong_token_is_certified_whatever_level_was_stated(level, factor, kind, seed):
    truth, states = captured()
    defence = (Gaussian if kind == "gaussian" else Laplace)(level)
    noisy = [defence.apply(one, seed + i) for i, one in enumerate(states)]
    certified(bundled(), noisy, truth, "beam", Noise(kind, level * factor))


@settings(max_examples=settings().max_examples // 4)
@given(
    st.sampled_from(["gpt2", "llama", "gemma"]),
    st.floats(-3, 0).map(lambda power: 10**power),
    st.sampled_from([0.2, 0.8, 1.0, 2.0]),
    st.integers(0, 99),
)
def test_hostile_drafts_in_noise(family, level, factor, seed):
    """At some positions the token whose row is nearest to the right one's is drafted, and the truth never again."""
    inv, truth = inverter(family), texts(6, 6, seed=seed)
    noisy = [Gaussian(level).apply(one, seed + i) for i, one in enumerate(inv.capture(truth))]
    drafts = [list(row) for row in truth]
    for row in drafts:
        row[seed % 6] = int(inv.vocabulary.neighbours.of(torch.tensor([row[seed % 6]]))[0][0, 0])
    certified(inv, noisy, truth, drafted(*drafts), Noise("gaussian", level * factor))


def test_faint_noise_is_certified_and_loud_noise_costs_no_rivals():
    truth, states = captured()
    faint = [Gaussian(0.005).apply(one, i) for i, one in enumerate(states)]
    assert certified(bundled(), faint, truth, "beam", Noise("gaussian", 0.005)) >= 0.8
    loud = [Gaussian(0.5).apply(one, i) for i, one in enumerate(states)]
    found = bundled().invert(loud, noise=Noise("gaussian", 0.5))
    assert not any((r.status == Status.CERTIFIED).any() for r in found)
    assert sum(r.cost.rivals + r.cost.exhaustive for r in found) <= 2 * sum(map(len, truth))


def test_a_level_that_was_stated_too_low_is_found_out(caplog):
    truth, states = captured()
    noisy = [Gaussian(0.01).apply(one, i) for i, one in enumerate(states)]
    for low in (0.001, 0.005, 0.009):
        assert certified(bundled(), noisy, truth, "beam", Noise("gaussian", low)) == 0.0
    assert "louder" in caplog.text
    assert certified(bundled(), noisy, truth, "beam", Noise("gaussian", 0.01)) > 0.5


@pytest.mark.parametrize(("kind", "level"), [("gaussian", 0.01), ("gaussian", 0.3), ("laplacian", 0.1)])
def test_the_level_is_estimated(kind, level):
    _, states = captured()
    defence = (Gaussian if kind == "gaussian" else Laplace)(level)
    found = bundled().estimate_noise([defence.apply(one, i) for i, one in enumerate(states)])
    assert found is not None
    assert found.kind == kind
    assert found.sigma == pytest.approx(level, rel=0.08)


def test_there_is_no_noise_in_what_is_only_rounded():
    _, states = captured()
    assert bundled().estimate_noise(states) is None
    assert bundled().estimate_noise([States(one.hidden.bfloat16()) for one in states]) is None


def test_absolute_noise_and_states_that_say_it_themselves():
    truth, states = captured()
    sigma = 0.01 * float(states[0].hidden.square().mean().sqrt())
    generator = torch.Generator().manual_seed(0)
    noise = Noise("gaussian", sigma, relative=False)
    noisy = [
        States(one.hidden + sigma * torch.randn(one.hidden.shape, generator=generator), noise=noise) for one in states
    ]
    found = bundled().invert([*noisy, states[0]])
    assert [r.token_ids.tolist() for r in found] == [*truth, truth[0]]
    assert found[0].posterior is not None
    assert found[2].posterior is None
    assert found[2].certified, "a text without noise beside them is inverted as ever"


def test_students_test_and_the_laplacian_tail():
    for freedom in (3, 63, 255):
        for z in (1.0, 5.0, 7.5):
            t = student(z, freedom)
            assert t > z
            back = float(normal_of(torch.tensor(t, dtype=torch.float64), freedom))
            assert back == pytest.approx(z, rel=1e-9)
    at = torch.tensor([0.5, 2.0, 10.0, 25.0], dtype=torch.float64)
    axis = 0.5 * torch.exp(-(2**0.5) * at)  # along an axis the tail is known
    assert (laplacian_tail(at) >= axis).all()
    assert (laplacian_tail(at) <= 200 * axis).all(), "no more than so much is given away"
    assert laplacian_deviations(4096) > deviations(4096) > 7


def test_how_noise_is_written():
    for noise in (Noise("gaussian", 0.05), Noise("laplace", 0.125), Noise("gaussian", 2.0, relative=False)):
        assert noise_named(noise.spec) == noise
    assert Noise("laplace", 1.0).kind == "laplacian"
    for wrong in (
        "gaussian",
        "gaussian:x",
        "gaussian:-1",
        "gaussian:0",
        "uniform:0.1",
        "gaussian:1:relative",
        "nan:nan",
    ):
        with pytest.raises(InputError, match=r"gaussian:0\.05"):
            noise_named(wrong)
