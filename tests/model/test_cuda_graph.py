"""The step that becomes a CUDA graph: it asks the device for nothing, and finds what the eager steps find.

What needs a GPU (the graph itself) is skipped without one; that nothing in the step keeps it from being captured is
proved with fake tensors, which have no values to be asked for.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from invert_fast import Continuous, Inverter, PerStepProjection
from invert_fast.engine.protocol import Context
from invert_fast.model import cuda_graph
from invert_fast.model.cuda_graph import Advance, GraphedSteps, Rows
from invert_fast.model.lanes import Lanes
from invert_fast.ops import table

from ..families import FAMILIES, MORE, VOCAB, build, exact, inverter, texts

SLOTS, LENGTH = 5, 6
QUICK = Continuous(steps=12, candidates=VOCAB, first_block=8, round=6)
SIPIT = PerStepProjection(max_steps=10, rest_block=64)
MODES = {
    "continuous": QUICK,
    "polyak": SIPIT,
    "sgd": replace(SIPIT, optimiser="sgd", lr=1.0),
    "adam": replace(SIPIT, optimiser="adam", lr=0.1),
}
OPTIMISERS = ("polyak", "sgd", "adam")
modes = pytest.mark.parametrize("mode", MODES)
cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="CUDA graphs need a CUDA GPU, and TRITON_INTERPRET=0",
)


def lanes_of(family: str, layer: int | str = -1) -> Lanes:
    """Lanes that stand at positions 0 … SLOTS−1, with their prefixes stored."""
    decoder = inverter(family, layer).decoder
    ids, everyone = torch.tensor(texts(*[LENGTH] * SLOTS)), torch.arange(SLOTS)
    lanes = Lanes(decoder, SLOTS, LENGTH)
    lanes.load(everyone, list(range(SLOTS)), list(decoder.capture(ids)))
    lanes.draft(everyone, ids)
    lanes.commit(everyone, ids, everyone, everyone)
    return lanes


def advance_of(family: str, lanes: Lanes, mode: str) -> Advance:
    """The update of a strategy that works on these lanes."""
    inv = inverter(family)
    states = inv.calibrate("float32", "float32")
    context = Context(lanes.decoder, inv.vocabulary, states, lanes, attempts=None)  # type: ignore[arg-type]
    proposer = MODES[mode].bind(context)
    return proposer._advance if mode == "continuous" else proposer._move_rows


class NoConstants(TorchDispatchMode):
    """Refuses `torch.tensor(…)`: on CUDA it copies from the host's memory, which a capture does not allow."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.lift_fresh.default:
            raise DataDependentOutputException(func)
        return func(*args, **(kwargs or {}))


def run_without_values(lanes: Lanes, advance: Advance) -> Rows:
    """One whole step on tensors that have shapes and no values: what needs a value raises."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, NoConstants():
        rows = Rows.empty(SLOTS, lanes.decoder.width, lanes.decoder.embedding.shape[1], lanes.ids.device)
        call = lanes.in_place(rows.slots, rows.length)
        call.keys = None if call.keys is None else [fake.from_tensor(k) for k in call.keys]
        call.values = None if call.values is None else [fake.from_tensor(v) for v in call.values]
        cuda_graph.step(lanes.decoder, rows, call, advance)
    return rows


@pytest.fixture
def formulas(monkeypatch):
    """The ops as their formulas: what a kernel computes is its own affair, and cannot wait for the device."""
    monkeypatch.setattr(table, "choose", lambda op, device: "reference")


# ---- capture safety


@pytest.mark.parametrize(
    ("family", "mode"), [(f, "continuous") for f in FAMILIES + MORE] + [("gpt2", o) for o in OPTIMISERS]
)
def test_the_step_asks_the_device_for_nothing(family, mode, formulas):
    lanes = lanes_of(family)
    rows = run_without_values(lanes, advance_of(family, lanes, mode))
    assert rows.value.shape == (SLOTS, lanes.decoder.embedding.shape[1])


@pytest.mark.parametrize("layer", ["embeddings", "block:1"])
def test_nor_does_that_of_an_inner_layer(layer, formulas):
    lanes = lanes_of("llama", layer)
    run_without_values(lanes, lambda rows, loss, grad: rows.value.sub_(grad))


def item(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value.sub_(grad * loss.max().item())


def branch(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    if bool((loss < 1).all()):
        rows.value.sub_(grad)


def chosen(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value[rows.moving] -= grad[rows.moving]


def found(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value.index_add_(0, rows.moving.nonzero()[:, 0], grad)


def constant(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value.sub_(grad * torch.tensor(0.1))


@pytest.mark.parametrize("bad", [item, branch, chosen, found, constant], ids=lambda bad: bad.__name__)
def test_a_step_that_does_would_be_noticed(bad, formulas):
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        run_without_values(lanes_of("gpt2"), bad)


# ---- equality with the eager steps


def figures(found) -> list[tuple]:
    """What must be equal to the bit. Costs are not: the eager steps stop a little earlier."""
    return [tuple(t.tolist() for t in (r.token_ids, r.status, r.rank, r.steps)) for r in found]


@pytest.mark.parametrize(
    ("family", "mode"), [*(("gpt2", m) for m in MODES), ("llama", "polyak"), ("mistral", "continuous"), ("opt", "adam")]
)
def test_steps_in_static_rows_find_what_eager_steps_find(family, mode, caplog):
    truth, inv = texts(4, 1, 0, 3, 2), inverter(family)
    states = inv.capture(truth)
    eager = inv.invert(states, replace(MODES[mode], cuda_graph=False), batch_size=3)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        static = inv.invert(states, replace(MODES[mode], cuda_graph=True), batch_size=3)
    assert exact(static, truth)
    assert figures(static) == figures(eager)
    for one, other in zip(static, eager, strict=True):
        assert one.cost.backward_tokens >= other.cost.backward_tokens >= one.steps.sum()
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1, "one message, however many graphs were wanted"
    assert "cannot be captured as a CUDA graph (device cpu has none)" in said[0]


def test_states_without_a_prefix_and_without_a_layer():
    inv = inverter("llama", "embeddings")
    truth = texts(3, 2)
    assert exact(inv.invert(inv.capture(truth), replace(QUICK, cuda_graph=True)), truth)


def test_a_graph_that_fails_is_said_and_the_steps_run_as_they_are(monkeypatch, caplog):
    """On a machine without CUDA the capture itself is what fails, in PyTorch."""
    if torch.cuda.is_available():
        pytest.skip("here a capture works")
    monkeypatch.setattr(cuda_graph, "_no_graphs", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    truth, inv = texts(3, 2), inverter("gpt2")
    with caplog.at_level(logging.WARNING, "invert_fast"):
        assert exact(inv.invert(inv.capture(truth), replace(QUICK, cuda_graph=True)), truth)
    assert len(caplog.records) == 1
    assert "going on kernel by kernel" in caplog.records[0].getMessage()


def sgd(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value.copy_(torch.where(rows.moving[:, None], rows.value - grad, rows.value))
    rows.step.add_(rows.moving)
    rows.moving.logical_and_(rows.step < 3 + rows.slots)  # lane s makes 3 + s steps


def tables_of(lanes: Lanes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = lanes.slots, lanes.decoder.embedding.shape[1]
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(lanes.ids.device)
    zero = torch.zeros_like(start)
    return start, zero, zero.clone(), torch.zeros_like(lanes.length)


@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 4], [3, 1], [4], [2, 0, 4]], ids=str)
def test_any_lanes_in_any_order_and_only_those(slots):
    lanes = lanes_of("gpt2")
    alone, tables = tables_of(lanes), tables_of(lanes)
    for slot in range(SLOTS):
        GraphedSteps(lanes, alone[0].shape[1], sgd).run(torch.tensor([slot]), alone, 20)
    before = tables[0].clone()
    moving = GraphedSteps(lanes, tables[0].shape[1], sgd).run(torch.tensor(slots), tables, 20)
    assert not moving.any()
    others = [s for s in range(SLOTS) if s not in slots]
    assert torch.equal(tables[0][others], before[others])
    assert tables[3].tolist() == [3 + s if s in slots else 0 for s in range(SLOTS)]
    torch.testing.assert_close(tables[0][slots], alone[0][slots], rtol=1e-5, atol=1e-5)


def test_it_stops_when_enough_are_done_and_charges_what_it_ran():
    lanes, everyone = lanes_of("gpt2"), torch.arange(SLOTS)
    lanes.forward_tokens.zero_()
    moving = GraphedSteps(lanes, lanes.decoder.embedding.shape[1], sgd).run(everyone, tables_of(lanes), 20, enough=3)
    assert moving.tolist() == [False, False, True, True, True], "two are done after the first look"
    assert lanes.forward_tokens.tolist() == lanes.backward_tokens.tolist() == [cuda_graph.LOOK_EVERY] * SLOTS


def test_what_a_graph_refers_to_stays_where_it_is():
    """Through commits, other lanes and later positions: rows and prefix storage keep their addresses."""
    lanes, everyone = lanes_of("llama"), torch.arange(SLOTS)
    steps, tables = GraphedSteps(lanes, lanes.decoder.embedding.shape[1], sgd), tables_of(lanes)

    def addresses() -> list[int]:
        return [t.data_ptr() for t in (*vars(steps.rows).values(), *(lanes.keys or []), *(lanes.values or []))]

    steps.run(everyone, tables, 2)
    before, ids = addresses(), torch.tensor(texts(*[LENGTH] * SLOTS))
    for _ in range(2):
        lanes.draft(everyone, ids[:, :1])
        lanes.commit(everyone, ids[:, :1], (lanes.length < LENGTH).long(), everyone)
        steps.run(everyone[:2], tables, 2)
    assert addresses() == before
    assert len(before) == 10 + 2 * lanes.decoder.blocks


def test_a_search_in_unknown_precision_is_refused():
    inv = inverter("gpt2")
    with pytest.raises(ValueError, match="search_dtype 'float8' is unknown, expected one of float32, tf32, bfloat16"):
        inv.invert(inv.capture(texts(2)), replace(QUICK, search_dtype="float8"))


# ---- on a GPU


@cuda
@modes
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_the_graph_finds_what_eager_steps_find_on_the_gpu(family, mode, caplog):
    truth, inv = texts(4, 1, 3, 2), Inverter(build(family).to("cuda"))  # type: ignore[arg-type]
    states = inv.capture(truth)
    eager = inv.invert(states, replace(MODES[mode], cuda_graph=False), batch_size=3)
    with caplog.at_level(logging.WARNING, "invert_fast"):
        graph = inv.invert(states, replace(MODES[mode], cuda_graph=True), batch_size=3)
    assert exact(graph, truth)
    assert not caplog.records, "it was captured"
    assert [r.token_ids.tolist() for r in graph] == [r.token_ids.tolist() for r in eager]


@cuda
@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_a_coarse_search_is_verified_in_full_on_the_gpu(dtype):
    truth, inv = texts(4, 1, 3, 2), Inverter(build("gpt2").to("cuda"))  # type: ignore[arg-type]
    found = inv.invert(inv.capture(truth), replace(QUICK, search_dtype=dtype))
    assert exact(found, truth)
