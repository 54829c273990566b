"""The Python API: states in, texts out in order, and every wrong input refused in one line that says what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import invert_fast
from invert_fast import Exhaustive, InputError, Inverter, Speculative, States
from invert_fast.strategies.registry import BUILT_IN as STRATEGIES
from invert_fast.strategies.registry import strategy_named
from invert_fast.types import dtype_named

from .families import POSITIONS, VOCAB, WIDTH, Tokenizer, build, exact, inverter, make, texts


@pytest.fixture(scope="module")
def inv() -> Inverter:
    return Inverter(make("gpt2"), Tokenizer(VOCAB))


def refused(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert message.count(":") or "expected" in message, "what to do?"
    return message


# ---- capture


def test_capture_and_invert_text(inv):
    truth = ["<7> <8> <7>", "", "<299>"]
    found = inv.invert(inv.capture(truth, special=False))
    assert [r.text for r in found] == truth
    assert [r.token_ids.dtype for r in found] == [np.int64] * 3
    assert all(r.certified for r in found)
    assert inv.invert(inv.capture("<7> <8>"))[0].text == "<1> <7> <8>"


def test_captured_states_say_where_they_are_from(inv):
    for states, length in zip(inv.capture(texts(4, 0)), (4, 0), strict=True):
        assert (len(states), states.hidden.shape) == (length, (length, WIDTH))
        assert (states.layer, states.dtype, states.compute_dtype) == ("final_norm", "float32", "float32")
        assert states.model == inv.decoder.fingerprint()
        assert not states.hidden.requires_grad


def test_capture_is_the_models_own_hidden_states(inv):
    ids = texts(9, 3, 9, 1)
    for states, row in zip(inv.capture(ids, batch_size=2), ids, strict=True):
        out = inv.decoder.model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(states.hidden, out, rtol=1e-5, atol=1e-5)


def test_capture_cuts_texts_and_adds_special_tokens(inv):
    assert len(inv.capture([[5] * 9], max_tokens=4)[0]) == 4
    assert len(inv.capture([[5] * (POSITIONS + 9)])[0]) == POSITIONS
    assert inv.encode("<7>", special=True) == [1, 7]
    assert inv.encode("<7>") == [7]
    (found,) = inv.invert(inv.capture(["<7>"]))
    assert found.text == "<1> <7>"


def test_max_tokens_of_nothing_is_nothing(inv):
    assert inv.encode([5, 6, 7], max_tokens=0) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_states_may_be_stored_in_any_precision(inv, dtype):
    truth = texts(20, 3)
    states = inv.capture(truth, store_dtype=dtype)
    assert all(s.hidden.dtype == dtype_named(dtype) and s.dtype == dtype for s in states)
    assert exact(inv.invert(states), truth)


@pytest.mark.parametrize("ids", [[VOCAB], [-1], [3, 10**6]])
def test_ids_outside_the_vocabulary_are_refused(inv, ids):
    message = refused(lambda: inv.capture([ids]))
    assert str(ids[-1]) in message
    assert str(VOCAB) in message


# ---- invert


def test_one_tensor_one_states_or_a_list_of_either(inv):
    truth = texts(6, 2)
    states = inv.capture(truth)
    assert exact(inv.invert(states[0]), truth[:1])
    assert exact(inv.invert(states[0].hidden), truth[:1])
    assert exact(inv.invert([states[0].hidden, states[1]]), truth)
    assert exact(inv.invert(tuple(states)), truth)
    assert exact(inv.invert(s for s in states), truth)
    assert exact(inv.invert(states[0].hidden.double()), truth[:1])
    assert exact(inv.invert(states[0].hidden.T.contiguous().T), truth[:1])
    assert exact(inv.invert(states[0].hidden.clone().requires_grad_()), truth[:1])


def test_results_come_in_the_order_of_the_states(inv):
    truth = texts(30, 1, 12, 0, 3, 25, 2)
    assert exact(inv.invert(inv.capture(truth), batch_size=2), truth)


def test_states_are_left_as_they_were(inv):
    states = inv.capture(texts(6))[0]
    before = states.hidden.clone()
    inv.invert(states)
    assert torch.equal(states.hidden, before)


def test_invert_iter_reads_as_lanes_come_free_and_gives_what_is_finished(inv):
    truth, taken = texts(*[3] * 20), []

    def source():
        for index, states in enumerate(inv.capture(truth)):
            taken.append(index)
            yield index, states

    running = inv.invert_iter(source(), batch_size=2, lengths=[3] * 20)
    index, first = next(running)
    assert exact([first], [truth[index]])
    assert len(taken) <= 6, "the whole source was read before the first result"
    found = dict([(index, first), *running])
    assert sorted(found) == list(range(20))
    assert exact([found[i] for i in range(20)], truth)


def test_indices_are_the_callers(inv):
    truth = texts(3, 2)
    states = inv.capture(truth)
    found = dict(inv.invert_iter([(70, states[0]), (7, states[1])], lengths=[3, 2]))
    assert exact([found[70], found[7]], truth)


def test_nothing_in_nothing_out(inv):
    assert inv.invert([]) == []
    assert list(inv.invert_iter([], lengths=[])) == []
    assert inv.invert(torch.zeros(0, WIDTH))[0].certified


def test_every_named_strategy(inv):
    truth = texts(5)
    for name in STRATEGIES:
        assert exact(inv.invert(inv.capture(truth), name), truth)
    assert strategy_named(Speculative()) == Speculative()
    assert "bogus" in refused(lambda: inv.invert(inv.capture(truth), "bogus"))


def test_given_tolerances_are_used(inv):
    states = inv.capture(texts(5))
    strict = replace(inv.calibrate(), noise=(1e-12, 1e-12), tolerance=(1e-12, 1e-12))
    noisy = states[0].hidden * (1 + 1e-5)
    assert inv.invert(noisy)[0].certified
    assert not inv.invert(noisy, tolerances=strict)[0].certified


def test_a_result_says_what_it_cost_and_how_it_was_verified(inv):
    (found,) = inv.invert(inv.capture(texts(8)), Exhaustive())
    assert found.cost.forward_tokens >= 8
    assert found.cost.backward_tokens == 0
    assert found.cost.seconds > 0
    assert found.precision.startswith("float32")
    assert found.steps.tolist() == [0] * 8


# ---- what is refused


def test_states_of_another_width(inv):
    message = refused(lambda: inv.invert(torch.zeros(3, WIDTH + 1)))
    assert str(WIDTH + 1) in message
    assert str(WIDTH) in message


def test_states_of_another_layer(inv):
    states = inverter("gpt2", "block:0").capture(texts(3))
    message = refused(lambda: inv.invert(states))
    assert "layer='block:0'" in message
    for name in (-1, 3, "final_norm", "-1"):
        assert inv.invert(replace(inv.capture(texts(3))[0], layer=name))[0].certified
    assert "'block:9'" in refused(lambda: inv.invert(replace(states[0], layer="block:9")))


def test_states_of_another_model(inv):
    states = Inverter(build("gpt2", seed=1)).capture(texts(3))
    message = refused(lambda: inv.invert(states))
    assert states[0].model in message
    assert inv.decoder.fingerprint() in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_rows_that_are_not_finite_are_named_by_number(inv, bad, dtype):
    hidden = inv.capture(texts(5, 6))[1].hidden.to(dtype)
    hidden[4, 17] = bad
    message = refused(lambda: inv.invert([inv.capture(texts(5))[0], hidden]))
    assert "text 1" in message
    assert "row 4" in message


@pytest.mark.parametrize(
    "states",
    [
        torch.zeros(WIDTH),
        torch.zeros(1, 2, 2, 3, WIDTH),
        torch.tensor(1.0),
        torch.zeros(3, WIDTH, dtype=torch.long),
        torch.zeros(3, WIDTH, dtype=torch.bool),
        torch.zeros(3, WIDTH, dtype=torch.complex64),
    ],
    ids=lambda t: f"{t.dtype} {list(t.shape)}",
)
def test_tensors_of_the_wrong_kind(inv, states):
    message = refused(lambda: inv.invert(states))
    assert str(states.dtype) in message or str(list(states.shape)) in message


@pytest.mark.parametrize(
    "states", [[[1.0, 2.0]], np.zeros((3, WIDTH), "U4"), "text", ["text"], [None], 7, {}], ids=type
)
def test_things_that_are_no_tensors(inv, states):
    refused(lambda: inv.invert(states))


def test_more_rows_than_the_model_has_positions(inv):
    message = refused(lambda: inv.invert(torch.zeros(POSITIONS + 1, WIDTH)))
    assert str(POSITIONS + 1) in message
    assert str(POSITIONS) in message


@pytest.mark.parametrize("option", ["states_dtype", "compute_dtype"])
def test_unknown_precisions(inv, option):
    assert "int4" in refused(lambda: inv.invert(inv.capture(texts(3)), **{option: "int4"}))
    assert "int4" in refused(lambda: inv.capture(texts(3), store_dtype="int4"))
    assert "int4" in refused(lambda: inv.invert(States(torch.zeros(2, WIDTH), dtype="int4")))


def test_a_later_text_that_is_wrong_is_refused_by_its_number(inv):
    states = [*inv.capture(texts(*[3] * 4)), torch.zeros(3, WIDTH + 2)]
    assert "text 4" in refused(lambda: inv.invert(states, batch_size=1))


# ---- the package


def test_the_public_names_are_there_and_typed():
    assert all(hasattr(invert_fast, name) for name in invert_fast.__all__)
    assert sorted(invert_fast.__all__, key=str.lower) == sorted(set(invert_fast.__all__), key=str.lower)
