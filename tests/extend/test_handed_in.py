"""Lenses and op backends that are handed in: the verdict stays the engine's, whatever they say. Strategies are in
`tests/engine/test_watched.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from invert_fast.kernels import reference
from torch import Tensor

from invert_fast import Exhaustive, InputError, Inverter, Speculative
from invert_fast.extend import EstimateLens, using
from invert_fast.lens import choose_lens
from invert_fast.ops import BACKENDS, native, outside, table
from invert_fast.ops.held import Held
from invert_fast.ops.held_cases import cases

from ..families import exact, make, texts


@pytest.fixture(scope="module")
def inverter() -> Inverter:
    return Inverter(make("gpt2"))


@pytest.fixture(scope="module")
def truth() -> list[list[int]]:
    return texts(4, 4)


class Constant(EstimateLens):
    """Says the same of every state, and that it is never wrong."""

    def estimate(self, hidden: Tensor) -> Tensor:
        return torch.ones(*hidden.shape[:2], self.vocabulary.embedding.shape[1])


class NoNumbers(Constant):
    def estimate(self, hidden: Tensor) -> Tensor:
        return torch.nan * super().estimate(hidden)


class Narrow(Constant):
    def estimate(self, hidden: Tensor) -> Tensor:
        return super().estimate(hidden)[..., 1:]


class Outsider(Constant):
    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        ids, leads = super().best(proxies)
        return ids + self.vocabulary.size, leads


class OfAnother(Constant):
    def __init__(self, decoder, vocabulary):
        super().__init__(decoder, vocabulary)
        self.vocabulary = SimpleNamespace(size=200)  # type: ignore[assignment]


def test_a_lens_that_is_wrong_costs_repairs_and_nothing_else(inverter, truth, small_fits):
    states = inverter.capture(truth)
    lens = Constant(inverter.decoder, inverter.vocabulary, variance=1e-12, accuracy=1.0)
    for given in (lens, lambda *_: lens):
        found = inverter.invert(states, Speculative(lens=given, max_candidates=None))
        assert exact(found, truth)
        assert all(one.cost.forward_tokens > len(one.token_ids) for one in found)
    chosen = choose_lens(inverter.decoder, inverter.vocabulary, lens, "float32")
    assert choose_lens(inverter.decoder, inverter.vocabulary, lens, "float32") is chosen, "made once"


@pytest.mark.parametrize(
    ("lens", "said"),
    [
        (lambda d, v, _: NoNumbers(d, v), "gives NaN or infinity for `proxies`, expected numbers"),
        (lambda d, v, _: Narrow(d, v), r"estimates \[.*63\] from states .*expected \[.*64\]"),
        (lambda d, v, _: Outsider(d, v), r"gives ids 3\d\d to .* for `best`, expected 0 to 299"),
        (lambda d, v, _: OfAnother(d, v), "is of 200 tokens, expected the 300"),
        (7, "a lens is a int, expected a name, a Lens, or what makes one"),
        ("bright", "lens 'bright' is unknown, expected one of auto, linear, learned"),
    ],
)
def test_a_lens_that_would_break_the_search_is_refused(inverter, truth, small_fits, lens, said):
    with pytest.raises(InputError, match=said):
        inverter.invert(inverter.capture(truth), Speculative(lens=lens))


@dataclass
class One:
    """A backend of one op."""

    op: str
    call: Any
    name: str = "one"

    def function(self, op: str, device: str) -> Any:
        return self.call if op == self.op else None


def test_what_measures_states_is_never_from_outside(inverter, truth):
    """Residuals of zero would certify everything, and rows far apart nothing to try beside it."""

    def forbidden(*_, **__):
        raise AssertionError("a verdict asked a backend from outside")

    states = Inverter(make("gpt2")).capture(truth)
    noisy = [one.hidden + 0.05 * torch.randn(one.hidden.shape, generator=torch.Generator()) for one in states]
    for op in ("residuals", "nearest_tokens"):
        with using(One(op, forbidden)):
            fresh = Inverter(make("gpt2"))
            assert exact(fresh.invert(states, Exhaustive()), truth)
            assert not any(one.certified for one in fresh.invert(noisy, Exhaustive()))


def test_tolerances_are_those_of_the_backend_in_use(inverter, truth):
    plain = inverter.calibrate()
    with using(One("gelu", reference.gelu)):
        assert inverter.calibrate() is not plain
    assert inverter.calibrate() is plain


OURS = [(op, name) for op, row in BACKENDS.items() for name in row if name not in ("triton", "cuda")]


@pytest.mark.parametrize(("op", "name"), OURS)
def test_our_own_backends_are_what_others_are_held_to(op, name):
    if name == "cpp" and native._C is None:
        pytest.skip("backend cpp: invert_fast._C is not built")
    held = Held(op, name, "cpu", table.backend(op, name, torch.device("cpu")))
    assert [*held._differences(torch.float32, torch.device("cpu"))] == []


def nothing(op: str) -> Callable:
    return lambda *given, **options: None


def one_off(op: str) -> Callable:
    """The formula, but for its last number, which is a thousandth off (or another id)."""

    def call(*given: Any, **options: Any) -> Any:
        out = getattr(reference, op)(*given, **options)
        first = given[0] if out is None else out[0] if isinstance(out, tuple) else out
        if first.numel():
            with torch.no_grad():
                first.view(-1)[-1] += 1 if first.dtype == torch.int64 else 1e-3
        return out

    return call


@pytest.mark.parametrize("op", BACKENDS)
@pytest.mark.parametrize("call", [nothing, one_off])
def test_what_is_not_its_reference_is_never_called_in_earnest(op, call):
    case = next(cases(op, torch.float32, torch.device("cpu")))
    outside._held.clear()
    with using(One(op, call(op))), pytest.raises(InputError, match=rf"'one' is not used for {op} in torch.float32 on"):
        table.backend(op, "one", torch.device("cpu"))(*case.given, **case.options)


def test_a_gradient_is_held_too():
    def forgets(x: Tensor) -> Tensor:
        return reference.gelu(x.detach()) + 0 * x

    with using(One("gelu", forgets)) as backend, pytest.raises(InputError, match=r"\[64\], tensor 1: off by"):
        outside.function_of(backend, "gelu", "cpu")(torch.ones(2))  # type: ignore[misc]


def test_a_backend_is_asked_for_by_name_or_not_at_all():
    with (
        pytest.raises(InputError, match="backend 'abacus' is unknown, expected one of auto, own, triton"),
        using("abacus"),
    ):
        pass
    with pytest.raises(InputError, match="calls itself 'cpp', which is one of ours"), using(One("gelu", None, "cpp")):
        pass
    with using(One("gelu", reference.gelu)), pytest.raises(ValueError, match="'one' does not have linear on cpu"):
        table.backend("linear", "one", torch.device("cpu"))
