"""How products are computed on CUDA: as we ask within, and as the program had it afterwards, however it said so.

PyTorch has an older and a newer way to say it, and refuses to tell by the older what was set by the newer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress

import pytest
import torch

from invert_fast.calls.settings import usual_settings
from invert_fast.model.precision import products

MATMUL = torch.backends.cuda.matmul
CUDA = torch.device("cuda")  # whose flags there are without one


def newer(value: str, of=MATMUL) -> None:
    of.fp32_precision = value


SET: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "older, on": lambda: setattr(MATMUL, "allow_tf32", True),
    "older, off": lambda: setattr(MATMUL, "allow_tf32", False),
    "newer, on": lambda: newer("tf32"),
    "newer, off": lambda: newer("ieee"),
    "newer, for everything": lambda: newer("tf32", torch.backends),
    "by one name": lambda: torch.set_float32_matmul_precision("high"),
}


def told() -> list[object]:
    def old() -> object:
        try:
            return MATMUL.allow_tf32
        except RuntimeError:
            return "not told"

    return [old(), MATMUL.fp32_precision, torch.backends.fp32_precision, MATMUL.allow_bf16_reduced_precision_reduction]


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    newer("none", torch.backends)
    torch.set_float32_matmul_precision("highest")
    newer("none")


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("compute", ["float32", "tf32"])
@pytest.mark.parametrize("by", SET)
@pytest.mark.parametrize("called", [False, True])
def test_products_are_as_asked_for_within_and_as_they_were_behind(by, compute, called):
    SET[by]()
    before = told()
    wanted = "tf32" if compute == "tf32" else "ieee"
    with usual_settings() if called else nullcontext(), suppress(KeyError), products(CUDA, compute):
        assert MATMUL.fp32_precision == wanted
        assert not MATMUL.allow_bf16_reduced_precision_reduction
        raise KeyError("what a pass raises")
    assert told() == before
