"""Faults planted on the pretended GPU, each of which a real one would refuse or wait for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invert_fast import Continuous, Inverter
from invert_fast.model.cuda_graph import GraphedSteps, Rows
from invert_fast.model.lanes import Lanes

from .tensor import STOPS


def on_device(*size: int) -> Tensor:
    return torch.ones(*size, device="cuda")


def number(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value.sub_(grad * loss.max().item())


def mask(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value[rows.moving] -= grad[rows.moving]


def constant(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    rows.value.sub_(grad * torch.tensor([0.1], device="cuda"))


REFUSED: dict[str, Callable[[], object]] = {
    "operands": lambda: on_device(3) + torch.ones(3),
    "operands the other way round": lambda: torch.ones(3) * on_device(3),
    "one number of the device": lambda: torch.ones(3) + on_device(1)[0],
    "parts": lambda: torch.cat([on_device(2), torch.ones(1)]),
    "numbers in a stack": lambda: torch.stack([on_device(1)[0], torch.tensor(1.0)]),
    "values": lambda: on_device(3).index_put_((torch.tensor([0, 1], device="cuda"),), torch.ones(2)),
    "an index into the host": lambda: torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")],
    "a mask": lambda: torch.where(on_device(3) > 0, on_device(3), torch.zeros(3)),
    "a generator": lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
    "a generator in place": lambda: on_device(3).uniform_(generator=torch.Generator()),
    "an array": lambda: on_device(3).numpy(),
}

COUNTED: dict[str, tuple[str, Callable[[], object]]] = {
    "item": ("item", lambda: on_device(1).item()),
    "a condition": ("item", lambda: bool(on_device(2).all())),
    "tolist": ("tolist", lambda: on_device(2).tolist()),
    "nonzero": ("nonzero", lambda: on_device(2).nonzero()),
    "where": ("nonzero", lambda: torch.where(on_device(2) > 0)),
    "a mask that selects": ("mask read", lambda: on_device(3)[on_device(3) > 0]),
    "a mask that is written through": ("mask write", lambda: on_device(3).__setitem__(on_device(3) > 0, on_device(3))),
    "unique": ("unique", lambda: on_device(3).unique()),
    "equal": ("equal", lambda: torch.equal(on_device(2), on_device(2))),
    "to the host": ("to host", lambda: on_device(3).cpu()),
    "to the host, into": ("to host", lambda: torch.empty(3).copy_(on_device(3))),
    "from the host": ("from host", lambda: torch.ones(3).to("cuda")),
    "from the host, into": ("from host", lambda: on_device(3).copy_(torch.ones(3))),
    "a constant": ("from host", lambda: torch.tensor([1, 2], device="cuda")),
    "a list as an index": ("from host", lambda: on_device(3)[[0, 1]]),
    "an index of the host": ("index from host", lambda: on_device(3)[torch.tensor([0, 1])]),
    "a number at an index": (
        "number at an index",
        lambda: on_device(3).__setitem__(torch.zeros(2, dtype=torch.long, device="cuda"), 2.0),
    ),
    "synchronize": ("synchronize", lambda: torch.cuda.synchronize()),
    "an eigenvalue": ("linalg", lambda: torch.linalg.eigh(torch.eye(2, device="cuda"))),
}


def _queued() -> None:
    pinned = torch.zeros(3, pin_memory=True)
    pinned.copy_(on_device(3), non_blocking=True)
    on_device(3).copy_(pinned, non_blocking=True)
    pinned.to("cuda", non_blocking=True)


def _masked() -> None:
    table = on_device(3)
    table[table > 0] = 0.0


FREE: dict[str, Callable[[], object]] = {
    "a number as an operand": lambda: on_device(3) * torch.tensor(2.0) + 1,
    "numbers by a fill": lambda: on_device(3).index_fill_(0, torch.zeros(2, dtype=torch.long, device="cuda"), 2.0),
    "numbers through a mask": _masked,
    "rows by an index": lambda: on_device(3)[torch.zeros(2, dtype=torch.long, device="cuda")],
    "pinned memory": _queued,
    "a shape in place": lambda: on_device(3).unsqueeze_(0) + on_device(1, 3),
    "a range": lambda: torch.arange(3, device="cuda").sort(descending=True),
}


def refusal(fault: Callable[[], object]) -> str | None:
    """What is said of a fault, None where nothing is."""
    try:
        fault()
    except (RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def counted(fault: Callable[[], object]) -> list[str]:
    """The kinds of stops that are counted of it."""
    STOPS.take()
    fault()
    return sorted(kind for (kind, _), count in STOPS.take()[0].items() for _ in range(count))


def recorded(inverter: Inverter, advance: Callable[[Rows, Tensor, Tensor], None]) -> str | None:
    """Why a step with this update could not be recorded, None where it could."""
    lanes = Lanes(inverter.decoder, 1, 4)
    slot = torch.zeros(1, dtype=torch.long)
    lanes.load(slot, [0], [inverter.capture(["A letter"])[0].hidden[:1]])
    width = inverter.decoder.embedding.shape[1]
    steps, zeros = GraphedSteps(lanes, width, advance), torch.zeros(1, width, device="cuda")
    tables = zeros, zeros.clone(), zeros.clone(), torch.zeros(1, dtype=torch.long, device="cuda")
    steps.run(slot, tables, 1)
    return steps.why_not


def fitting(rows: Rows, loss: Tensor, grad: Tensor) -> None:
    """No fault."""
    rows.value.copy_(torch.where(rows.moving[:, None], rows.value - Continuous().lr * grad, rows.value))
