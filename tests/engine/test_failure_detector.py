"""The failure detector of 2607.00852 §4.3 on the trained model: every wrong prompt, no right one, in any precision."""

from __future__ import annotations

import numpy as np
import pytest

from invert_fast import Continuous, Inverter
from invert_fast.cli import demo
from invert_fast.engine.trace import first_failure

HASTY = Continuous(steps=12, candidates=1)  # too few steps for many tokens, and one guess


@pytest.fixture(scope="module")
def bundled():
    return Inverter.from_pretrained("bundled", device="cpu")


def first_wrong(found: list[int], true: list[int]) -> int | None:
    return next((t for t, (a, b) in enumerate(zip(found, true, strict=True)) if a != b), None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_wrong_prompts_of_the_trained_model_are_found_and_right_ones_are_not(bundled, dtype):
    short = [bundled.encode(text)[:3] for text in demo.sentences()[:24]]
    whole = [bundled.encode(text) for text in demo.sentences()[:12]]
    found = bundled.invert(bundled.capture(short, store_dtype=dtype), HASTY)
    found += bundled.invert(bundled.capture(whole, store_dtype=dtype))
    wrong = right = 0
    for ids, recovery in zip([*short, *whole], found, strict=True):
        expected = first_wrong(recovery.token_ids.tolist(), ids)
        assert first_failure(recovery.discrete_loss, recovery.loss_ceiling) == expected
        wrong, right = wrong + (expected is not None), right + (expected is None)
    assert wrong >= 8, wrong
    assert right >= 12, right


def test_the_threshold_of_fp32_would_cry_wolf_on_bf16(bundled):
    """Why ceilings are calibrated: the noise of bf16 alone is decades above what fp32 states allow."""
    ids = [bundled.encode(text) for text in demo.sentences()[:4]]
    found = bundled.invert(bundled.capture(ids, store_dtype="bfloat16"))
    assert all(r.token_ids.tolist() == i for r, i in zip(found, ids, strict=True))
    assert all(first_failure(r.discrete_loss) is not None for r in found)
    assert all(first_failure(r.discrete_loss, r.loss_ceiling) is None for r in found)


def test_a_ceiling_is_the_calibrated_tolerance_in_units_of_the_state(bundled):
    ids = bundled.encode("The cat sat on the mat")
    (state,) = bundled.capture([ids])
    (found,) = bundled.invert([state])
    first, rest = bundled.calibrate().tolerance
    scale = state.hidden.double().square().mean(-1).numpy()
    expected = np.array([first] + [rest] * (len(ids) - 1)) ** 2 * scale
    np.testing.assert_allclose(found.loss_ceiling, expected, rtol=1e-4)


def test_ceilings_one_a_position():
    assert first_failure([1e-12, 4e-7, 0.2], [1e-6, 1e-6, 1e-6]) == 2
    assert first_failure([1e-3, 1e-3], [1e-2, 1e-4]) == 1
    assert first_failure([1e-3, float("nan")], [1e-2, 1e-2]) == 1
    assert first_failure([], []) is None
    with pytest.raises(ValueError, match="expected one a position"):
        first_failure([1e-3, 1e-3], [1e-2])


def test_the_detector_on_figures_of_its_own():
    floor = [1e-12, 3e-13, 9e-12]
    assert first_failure(floor) is None
    assert first_failure([]) is None
    assert first_failure([*floor, 0.2, 0.5]) == 3
    assert first_failure([0.2, 1e-12]) == 0
    assert first_failure([1e-12, float("nan")]) == 1
    assert first_failure([4e-7, 4e-7, 4e-7]) == 2, "it is the sum that counts"
    assert first_failure([1e-4, 1e-4], threshold=1e-3) is None
