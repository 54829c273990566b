"""Whatever PyTorch was told to do elsewhere in a program: results are the same, and it is told so still."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from invert_fast import Fit, InputError, Inverter, PerStepProjection, Recovery, States
from invert_fast.defences import Gaussian, next_token_losses

from ..families import build, texts

TEXTS = texts(7, 1, 12)


@contextmanager
def default(put: Callable[[Any], object], get: Callable[[], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def deterministic() -> AbstractContextManager[None]:
    return default(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True)


def precision(name: str) -> AbstractContextManager[None]:
    return default(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision, name)


SETTINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "bf16 by default": lambda: default(torch.set_default_dtype, torch.get_default_dtype, torch.bfloat16),
    "fp64 by default": lambda: default(torch.set_default_dtype, torch.get_default_dtype, torch.float64),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
    "coarse products": lambda: precision("medium"),
    "nowhere by default": lambda: torch.device("meta"),
    "numpy that raises": lambda: np.errstate(all="raise"),
}
every_setting = pytest.mark.parametrize("odd", SETTINGS.values(), ids=SETTINGS)


def surroundings(model: torch.nn.Module) -> list[object]:
    """All that a call could leave otherwise than it was."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        [np.asarray(part).tolist() for part in np.random.get_state()[1:]],  # noqa: NPY002 (the global one is meant)
        (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        np.geterr(),
        [(name, p.requires_grad, p.grad is None, p._version) for name, p in model.named_parameters()],
        [module.training for module in model.modules()],
        [hook for module in model.modules() for hook in module._forward_hooks.values() if not _of_the_library(hook)],
        model.config._attn_implementation,
        model.config.to_dict(),
    ]


def _of_the_library(hook: Callable) -> bool:
    """transformers' own, which stay with a model that was asked for its hidden states, as ours does."""
    return hook.__module__.startswith("transformers.")


def trained() -> torch.nn.Module:
    """A model in the midst of its training: dropout on, but for one block that is not trained."""
    model = build("gpt2")
    model.requires_grad_(True).train()
    model.transformer.h[0].eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return model


def told(found: list[Recovery]) -> list[object]:
    return [(r.token_ids.tolist(), r.status.tolist(), r.residual.tolist(), r.margin.tolist()) for r in found]


def everything(model: torch.nn.Module, states: list[States]) -> list[object]:
    """What all calls give, as plain numbers."""
    inverter = Inverter(model)
    captured = inverter.capture(TEXTS)
    found = inverter.invert(states)
    searched = inverter.invert(states[1], PerStepProjection(max_steps=3))
    diagnosed = inverter.diagnose(states[0])
    defended = Gaussian(0.1).apply(states[0], seed=3)
    assert not any(s.hidden.is_inference() or s.hidden.requires_grad for s in (*captured, defended))
    return [
        [s.hidden.tolist() for s in captured],
        told(found),
        told(searched),
        (diagnosed.verdict, diagnosed.certified),
        defended.hidden.tolist(),
        next_token_losses(inverter.decoder, TEXTS[0], states[0].hidden).tolist(),
        inverter.score(found, TEXTS).exact_match,
        [r.token_ids.tolist() for r in Inverter(model, layer=1).invert(Inverter(model, layer=1).capture(TEXTS))],
    ]


@pytest.fixture(scope="module")
def usual() -> tuple[list[States], list[object]]:
    states = Inverter(build("gpt2")).capture(TEXTS)
    everything(build("gpt2"), states)  # what is fitted and measured once: from now on all begin with the same
    found = everything(build("gpt2"), states)
    assert found[6] == 1.0
    return states, found


@every_setting
def test_results_are_the_same_and_settings_stay(usual, odd):
    states, wanted = usual
    model = build("gpt2")
    with odd():
        before = surroundings(model)
        found = everything(model, states)
        assert surroundings(model) == before
    assert found == wanted


def test_a_model_that_is_being_trained_goes_on_with_it(usual):
    states, wanted = usual
    model = trained()
    before = surroundings(model)
    assert everything(model, states) == wanted
    assert surroundings(model) == before


def test_measured_and_fitted_under_odd_settings_they_are_the_same(small_fits, monkeypatch):
    """What is kept in the cache folder too: a later program uses it."""
    kept = []
    for number, names in enumerate(((), ("autocast", "bf16 by default", "inference mode"))):
        monkeypatch.setenv("INVERT_FAST_CACHE", str(small_fits / str(number)))
        model = trained()
        with ExitStack() as odd:
            for name in names:
                odd.enter_context(SETTINGS[name]())
            inverter = Inverter(model)
            inverter.fit("learned", Fit(width=32, layers=1, steps=6))
            inverter.calibrate("bfloat16")
        kept.append({path.name: path.read_bytes() for path in (small_fits / str(number)).iterdir()})
    assert len(kept[0]) >= 3
    assert kept[0] == kept[1]


def test_after_an_exception_settings_are_as_before():
    model = trained()
    inverter = Inverter(model)
    (states,) = inverter.capture(TEXTS[:1])

    def broken() -> Iterator[tuple[int, States]]:
        yield 0, states
        raise KeyError("the caller's own")

    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (InputError, lambda: inverter.invert(torch.full((3, 64), float("nan")))),
        (InputError, lambda: inverter.fit("another")),
        (InputError, lambda: Inverter(model, layer=99)),
        (InputError, lambda: inverter.diagnose(torch.zeros(0, 64))),
        (InputError, lambda: inverter.capture([[10**6]])),
        (KeyError, lambda: list(inverter.invert_iter(broken(), lengths=[7, 7], batch_size=1))),
    ]
    with torch.autocast("cpu"), default(torch.set_default_dtype, torch.get_default_dtype, torch.float64):
        before = surroundings(model)
        for error, call in calls:
            with pytest.raises(error):
                call()
            assert surroundings(model) == before


def test_a_caller_who_gives_texts_as_they_come_does_so_under_settings_of_his_own(usual):
    """A generator of states runs in the midst of our call, and would not know."""
    states, wanted = usual
    model = trained()
    inverter, seen = Inverter(model), []

    def found() -> tuple[bool, ...]:
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return *modes, model.training

    def given() -> Iterator[tuple[int, States]]:
        for index, item in enumerate(states):
            seen.append(found())
            yield index, item

    def inverted() -> None:
        for number, recovery in inverter.invert_iter(given(), lengths=[*map(len, states)], batch_size=1):
            seen.append(found())
            assert told([recovery])[0][:2] == wanted[1][number][:2]

    inverted()
    assert set(seen) == {(True, False, False, True)}
    seen.clear()
    with torch.inference_mode(), torch.autocast("cpu"):
        inverted()
        assert told(inverter.invert(states)) == wanted[1]
    assert set(seen) == {(False, True, True, True)}
    assert len(seen) == 2 * len(states)


def test_weights_that_no_gradient_can_pass_are_refused():
    with torch.inference_mode():
        model = copy.deepcopy(build("gpt2"))
    with pytest.raises(InputError, match="inference"):
        Inverter(model)
    with torch.inference_mode():
        assert Inverter.from_pretrained("bundled").decoder.dtype == torch.float32


def test_states_that_were_made_in_inference_mode(usual):
    """As most people run a model for its states."""
    states, wanted = usual
    with torch.inference_mode():
        made = [States(s.hidden.clone(), s.layer) for s in states]
    assert made[0].hidden.is_inference()
    inverter = Inverter(build("gpt2"))
    assert [each[:2] for each in told(inverter.invert(made))] == [each[:2] for each in wanted[1]]
    assert inverter.invert(made[1], PerStepProjection(max_steps=3))[0].certified
    assert inverter.diagnose(made[0]).certified
