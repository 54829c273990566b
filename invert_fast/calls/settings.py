"""What PyTorch was told to do elsewhere in the process, set aside while one of our calls runs: the one place for it.

A program may call us with autocast on, in inference mode, with another default type or device, with a model that is
being trained. None of that may change what is recovered, and all of it is there again afterwards, after an error too.
Settings of the thread and of the model are those of one call. Those of the process are shared by calls of several
threads: the first that needs them sets them aside, the last one puts them back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

_KINDS = ("cpu", "cuda")  # of devices whose autocast is looked at


@contextmanager
def usual_settings(model: nn.Module | None = None) -> Iterator[None]:
    """Gradients on (they are switched off where none are needed), no inference mode, no autocast, fp32 and the CPU as
    defaults, products in full fp32; all modules of `model` as for use, not for training."""
    with ExitStack() as aside:
        if torch.is_inference_mode_enabled():
            aside.enter_context(torch.inference_mode(False))
        aside.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        torch.set_grad_enabled(True)
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                aside.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            aside.enter_context(torch.device("cpu"))
        aside.enter_context(_PROCESS)
        if model is not None:
            aside.enter_context(_in_use(model))
        yield


@contextmanager
def _in_use(model: nn.Module) -> Iterator[None]:
    """Flags alone: what a module does when it is told to `train()`, such as merging weights, is for its owner."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Process:
    """What is set for all threads at once."""

    def __init__(self):
        self._lock, self._calls = threading.Lock(), 0
        self._back: list[tuple[Callable[[Any], object], Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._calls += 1
            if (dtype := torch.get_default_dtype()) != torch.float32:
                torch.set_default_dtype(torch.float32)
                self._back.append((torch.set_default_dtype, dtype))
            with suppress(RuntimeError):  # where PyTorch's newer settings were used it has no such single one
                if (precision := torch.get_float32_matmul_precision()) != "highest":
                    torch.set_float32_matmul_precision("highest")
                    self._back.append((torch.set_float32_matmul_precision, precision))

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            while self._back and not self._calls:
                put, value = self._back.pop()
                put(value)

    def forked(self) -> None:
        """Nobody in the child can let go of a lock that another thread of the parent held."""
        self._lock = threading.Lock()


_PROCESS = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.forked)
