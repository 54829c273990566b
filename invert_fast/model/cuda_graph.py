"""One optimisation step of all lanes as one CUDA graph: forward and backward pass of their proxies, and the update.

At a few lanes a step is hundreds of small kernels, and launching them takes longer than running them; a graph launches
all at once. It refers to tensors by their addresses, so everything that changes from step to step, and from position to
position, lives in static rows and in the lanes' prefix storage with its lengths. Nothing inside may ask the device for
a number. Where a graph cannot be had, the very same step runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .decoder import Decoder
from .gradient import loss_and_gradient
from .lanes import Lanes
from .prefix import PrefixCall
from .transfer import sent

log = logging.getLogger("invert_fast")

LOOK_EVERY = 4  # steps between two looks at how many lanes still move
_WARM_UPS = 2


@dataclass
class Rows:
    """What a step reads and writes, one row a lane: slots, length `[b]` of the lane's prefix; target `[b, D]`; value,
    exp_avg, exp_avg_sq `[b, D_e]` fp32 and step `[b]`: proxy and optimiser; moving `[b]` bool: the others are left as
    they are; loss `[b]`: MSE before the last step; left `[]`: how many move."""

    slots: Tensor
    length: Tensor
    target: Tensor
    value: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    moving: Tensor
    loss: Tensor
    left: Tensor

    @classmethod
    def empty(cls, count: int, width: int, embedding_width: int, device: torch.device) -> Rows:
        long, wide = torch.zeros(count, dtype=torch.long, device=device), torch.zeros(count, width, device=device)
        proxy, loss = torch.zeros(count, embedding_width, device=device), torch.zeros(count, device=device)
        left = torch.zeros((), dtype=torch.long, device=device)
        moving = torch.zeros(count, dtype=torch.bool, device=device)
        optimiser = (proxy, proxy.clone(), proxy.clone(), long.clone())
        return cls(long, long.clone(), wide, *optimiser, moving, loss, left)

    def first(self, count: int) -> Rows:
        """The first `count` rows, in place."""
        tables = (getattr(self, field.name) for field in fields(self))
        return Rows(*(table[:count] if table.dim() else table for table in tables))


Advance = Callable[[Rows, Tensor, Tensor], None]
"""Moves the rows' values by loss `[b]` and gradient `[b, D_e]`, in place, and says in `moving` which go on. Rows that
do not move must stay as they are; nothing may be read back from the device."""


def step(decoder: Decoder, rows: Rows, call: PrefixCall, advance: Advance, search_dtype: str = "float32") -> None:
    """One step of these rows: MSE(f(value | prefix), target), its gradient, and what `advance` makes of them."""
    loss, grad = loss_and_gradient(
        lambda embeds: decoder.run(embeds, rows.length[:, None], call, search_dtype),
        *(rows.value, rows.target, decoder.dtype, search_dtype),
    )
    rows.loss.copy_(loss)
    with torch.no_grad():
        advance(rows, rows.loss, grad)
        rows.left.copy_(rows.moving.sum())


class GraphedSteps:
    """Runs steps of any of the lanes, `advance` being the strategy's update; its rows are as many as there are lanes.

    search_dtype: float32 | tf32 | bfloat16, in which products are computed on CUDA: the search may be coarse, since
    what it finds is verified in full precision. A graph is captured for each size of batch that is met, in halves of
    the number of lanes. why_not: what kept a graph from being captured, None so far.
    """

    def __init__(self, lanes: Lanes, embedding_width: int, advance: Advance, search_dtype: str = "float32"):
        self.lanes, self.advance, self.search_dtype = lanes, advance, search_dtype
        self.device = lanes.decoder.device
        self.rows = Rows.empty(lanes.slots, lanes.decoder.width, embedding_width, self.device)
        self.why_not: str | None = None
        self._run: dict[int, Callable[[], None]] = {}
        self._pool = None
        self._look = _Look(self.device)

    def run(self, slots: Tensor, tables: tuple[Tensor, Tensor, Tensor, Tensor], most: int, enough: int = 0) -> Tensor:
        """Up to `most` steps of lanes `slots [b]` (on the host), fewer once no more than `enough` of them move, as is
        seen with a delay.

        tables: value, exp_avg, exp_avg_sq `[S, D_e]` and step `[S]` of all lanes, of which the rows of these lanes are
        taken and put back. Returns `moving [b]` bool. A step that a lane no longer makes changes nothing in it.
        """
        b, lanes = len(slots), self.lanes
        lanes.reserve()
        count = self._size(b)
        run = self._run.get(count) or self._prepare(count)
        rows = self.rows.first(count)
        there, length = sent(self.device, slots, lanes.length[slots])
        self._fill(rows, there, length, tables)
        taken = 0
        while taken < most:
            run()
            taken += 1
            if taken % LOOK_EVERY == 0 and taken < most and self._look.at(rows.left) <= enough:
                break
        self._look.forget()
        for table, row in zip(tables, (rows.value, rows.exp_avg, rows.exp_avg_sq, rows.step), strict=True):
            table[there] = row[:b]
        lanes.charge(slots, forward=taken, backward=taken)
        return rows.moving[:b].clone()

    def _size(self, wanted: int) -> int:
        """The smallest of S, ⌈S/2⌉, ⌈S/4⌉ … that holds so many."""
        size = self.lanes.slots
        while size > 1 and -(-size // 2) >= wanted:
            size = -(-size // 2)
        return size

    def _fill(self, rows: Rows, slots: Tensor, length: Tensor, tables: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        b = len(slots)
        for row, table in zip((rows.value, rows.exp_avg, rows.exp_avg_sq, rows.step), tables, strict=True):
            row[:b] = table[slots]
        rows.target[:b] = self.lanes.targets[slots, length]
        rows.slots[:b], rows.length[:b], rows.moving[:b] = slots, length, True
        # Rows to spare stand at the start of a text, read no prefix, and do not move.
        rows.slots[b:], rows.length[b:], rows.moving[b:], rows.value[b:] = 0, 0, False, 0.0

    def _prepare(self, count: int) -> Callable[[], None]:
        """What runs a step of the first `count` rows: a graph of it, or the step itself."""
        rows, lanes = self.rows.first(count), self.lanes

        def once() -> None:
            call = lanes.in_place(rows.slots, rows.length)
            step(lanes.decoder, rows, call, self.advance, self.search_dtype)

        if self.why_not is None:
            self.why_not = _no_graphs(self.device)
            if self.why_not is None:
                try:
                    self._run[count] = self._capture(rows, once)
                    return self._run[count]
                except RuntimeError as error:  # also what CUDA and its allocator raise
                    self.why_not = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            log.warning(
                "an optimisation step cannot be captured as a CUDA graph (%s): going on kernel by kernel, which is "
                "slower and finds the same",
                self.why_not,
            )
        self._run[count] = once
        return once

    def _capture(self, rows: Rows, once: Callable[[], None]) -> Callable[[], None]:
        rows.moving.fill_(False)  # what runs before and while it is captured must not move anything
        rows.slots.fill_(0)
        rows.length.fill_(0)
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # kernels are compiled and workspaces made now: a capture may do neither
                for _ in range(_WARM_UPS):
                    once()
            torch.cuda.current_stream().wait_stream(stream)
            self._pool = self._pool or torch.cuda.graph_pool_handle()  # graphs never run side by side: one pool for all
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread of the process may go on allocating.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                once()
        return graph.replay


class _Look:
    """Reads a number from the device one look late, so that the device has steps to do while the host waits for it."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.buffers = [torch.zeros((), dtype=torch.long, pin_memory=self.cuda) for _ in range(2)]
        self.asked: tuple[Tensor, torch.cuda.Event] | None = None

    def at(self, number: Tensor) -> int:
        """What was there at the last look (on a CPU, where nothing is queued, what is there now)."""
        if not self.cuda:
            return int(number)
        before = self.asked
        buffer, event = self.buffers[0], torch.cuda.Event()
        self.buffers.reverse()
        with torch.cuda.device(number.device):
            buffer.copy_(number, non_blocking=True)
            event.record()
        self.asked = buffer, event
        if before is None:
            return torch.iinfo(torch.long).max
        before[1].synchronize()
        return int(before[0])

    def forget(self) -> None:
        """The steps of these rows are over: the next look is the first one again."""
        self.asked = None


def _no_graphs(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"device {device} has none"
    if torch.cuda.is_current_stream_capturing():
        return "a capture is under way already"
    return None
