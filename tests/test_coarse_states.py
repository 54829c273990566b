"""The bundled model's states in half precision, stored or computed in it, on real text."""

from __future__ import annotations

import numpy as np
import pytest

from invert_fast import Inverter, Status
from invert_fast.cli import demo

from .recovered import check


@pytest.fixture(scope="module")
def bundled():
    return Inverter.from_pretrained("bundled")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bundled_coarse_states(bundled, dtype):
    right, certified, _ = check(bundled, [bundled.encode(s) for s in demo.sentences()], store_dtype=dtype)
    assert right >= 0.99
    assert certified >= 0.99


def test_bundled_computed_in_bf16():
    """States of a bf16 forward pass, inverted in fp32: ten times the noise of rounding alone, and still honest."""
    rows = [Inverter.from_pretrained("bundled").encode(s) for s in demo.sentences()[:12]]
    states = Inverter.from_pretrained("bundled", dtype="bfloat16").capture(rows, store_dtype="bfloat16")
    found = Inverter.from_pretrained("bundled").invert(states)
    for recovery, row in zip(found, rows, strict=True):
        right = recovery.token_ids == np.array(row)
        assert right[recovery.status == Status.CERTIFIED].all()
    assert np.mean([r.token_ids.tolist() == row for r, row in zip(found, rows, strict=True)]) > 0.9
