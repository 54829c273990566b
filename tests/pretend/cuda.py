"""`torch.cuda` of a machine with one pretended GPU. It stays so: for a process that ends with what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from .tensor import DEVICE, STOPS, Device, is_pinned


class Stream:
    """Whatever is queued has been done: there is nothing to wait for but what would be waited for."""

    cuda_stream, device, device_index = 0, DEVICE, 0

    def __init__(self, *_args, **_options):
        pass

    def wait_stream(self, _other: Stream) -> None:
        """Streams that wait for each other do not stop the host."""

    def synchronize(self) -> None:
        STOPS.note("synchronize")


class Event:
    def __init__(self, *_args, **_options):
        pass

    def record(self, *_args) -> None:
        """Nothing is queued."""

    def synchronize(self) -> None:
        STOPS.note("event")


class Graph:
    """What was recorded, and its replay: the same ops on the same memory."""

    replays = 0

    def __init__(self, *_args, **_options):
        self.ops: list[tuple] = []

    @torch.no_grad()
    def replay(self) -> None:
        Graph.replays += 1
        STOPS.launches += 1
        with _disable_current_modes():
            for func, args, options, before in self.ops:
                for old, new in zip(tree_leaves(before), tree_leaves(func(*args, **options)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@contextmanager
def graph(into: Graph, **_options: Any) -> Iterator[None]:
    with STOPS.recording() as ops:
        yield
    into.ops = ops


def begin() -> None:
    """From here on this process has one GPU, which is pretended; `guard.py` says what it needs before that."""
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=)` then shows its copy as an op
    torch.autograd.set_multithreading_enabled(False)  # there are no threads for a device that is not there
    cuda: Any = torch.cuda
    for name, value in {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": None,
        "_is_in_bad_fork": False,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "mem_get_info": (1 << 33, 1 << 34),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "set_rng_state": None,
        "graph_pool_handle": (0, 0),
    }.items():
        setattr(cuda, name, lambda *_args, value=value, **_options: value)
    cuda.is_current_stream_capturing = lambda: STOPS.recorded is not None
    cuda.get_rng_state = lambda *_args: torch.random.get_rng_state()
    cuda.synchronize = lambda *_args: STOPS.note("synchronize")
    cuda.current_stream = lambda *_args: Stream()
    cuda.stream = cuda.device = lambda *_args: nullcontext()
    cuda.Stream, cuda.Event, cuda.CUDAGraph, cuda.graph = Stream, Event, Graph, graph
    from invert_fast.ops import native, table

    # a GPU without kernels: PyTorch's own ops, and the formulas where it has none
    table.HAS_TRITON, native._cuda = False, None
    table.choose.cache_clear()
    torch.Tensor.pin_memory = pinned  # in whatever thread
    Device().__enter__()


def pinned(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    if is_pinned(tensor):
        return tensor
    made = tensor.clone()
    made.is_pinned_here = True  # type: ignore[attr-defined]
    return made
