"""The table of the ops: every place in it exists, and wrong shapes and names are refused before one is asked."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest
import torch

from invert_fast import ops
from invert_fast.ops import native, table

from .inputs import random


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, row in ops.BACKENDS.items() for name in row])
def test_every_place_in_the_table_exists_and_takes_what_the_reference_takes(op, name):
    module, _, function = ops.BACKENDS[op][name].partition(":")
    if name == "triton" and not table.HAS_TRITON:
        pytest.skip("Triton is not installed (it exists for Linux)")
    found = getattr(import_module(f"invert_fast.{module}"), function)
    assert table.backend(op, name, torch.device("cpu")) is found
    reference = getattr(import_module("invert_fast.kernels.reference"), op)
    asked, taken = inspect.signature(reference).parameters, inspect.signature(found).parameters.values()
    passes_on = {p.kind for p in taken} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    assert passes_on or [p.name for p in taken] == list(asked)


@pytest.mark.parametrize("op", ops.BACKENDS)
def test_what_runs_where_nothing_is_asked(op, monkeypatch):
    table.choose.cache_clear()
    plain = "fused" if "fused" in ops.BACKENDS[op] else "reference"
    assert ops.choose(op, "cpu") == ("cpp" if native.has(op) else plain)
    assert ops.choose(op, "cuda") != "cuda", "it only cross-checks Triton"
    with monkeypatch.context() as patch:
        patch.setattr(native, "_C", None)
        table.choose.cache_clear()
        assert ops.choose(op, "cpu") == plain
    table.choose.cache_clear()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.residuals(random(2, 3, 4), random(3, 4)),
        lambda: ops.residuals(random(2, 4), random(2, 4)),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 4), 1),
        lambda: ops.nearest_tokens(random(3), random(5, 3), 1),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 0),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 6),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 1, "manhattan"),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 1, banned=torch.zeros(2, 4).bool()),
        lambda: ops.nearest_tokens(random(2, 3), random(5, 3), 1, banned=torch.zeros(2, 5)),
        lambda: ops.linear(random(2, 3), random(4, 5)),
        lambda: ops.linear(random(2, 3), random(3, 5), random(4)),
        lambda: ops.best_two(random(2, 3), random(5, 4), random(5)),
        lambda: ops.best_two(random(2, 3), random(5, 3), random(4)),
        lambda: ops.residuals(random(2, 3, 4), random(2, 4), backend="abacus"),
    ],
)
def test_wrong_shapes_and_names_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|asked for"):
        call()
