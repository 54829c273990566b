"""A function of somebody else's backend, held to the reference before its first answer counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..types import InputError
from .held_cases import Case, cases

_TIMES, _ROUNDINGS = 4.0, 4.0  # as far off as the reference is in that precision, and roundings of the largest number


class Held:
    """Calls `call` like the function it is, once it gave what the reference gives in that precision.

    Raises InputError, each time, where it does not: with the op, the case and how far off it was.
    """

    def __init__(self, op: str, backend: str, device: str, call: Callable[..., Any]):
        self.op, self.backend, self.device, self.call = op, backend, device, call
        self.reference: Callable[..., Any] = getattr(import_module("invert_fast.kernels.reference"), op)
        self._tried: dict[torch.dtype, str] = {}

    def __call__(self, *given: Any, **options: Any) -> Any:
        dtype = given[0].dtype
        if dtype not in self._tried:
            self._tried[dtype] = next(self._differences(dtype, given[0].device), "")
        if said := self._tried[dtype]:
            raise InputError(
                f"backend '{self.backend}' is not used for {self.op} in {dtype} on {self.device}, where it is not what "
                f"invert_fast.kernels.reference.{self.op} is: {said}"
            )
        if self.op in ("linear", "best_two"):
            given = given[:3]  # what else there is was laid out for a backend of ours
        return self.call(*given, **options)

    def _differences(self, dtype: torch.dtype, device: torch.device) -> Iterator[str]:
        for case in cases(self.op, dtype, device):
            try:
                found = _answers(self.call, case)
            except Exception as error:  # somebody else's, of any kind
                yield f"{case.name}: {type(error).__name__}: {error}"
                continue
            wanted, truth = _answers(self.reference, case), _answers(self.reference, case.double())
            for place, (ours, theirs, true) in enumerate(zip(wanted, found, truth, strict=False)):
                if said := _difference(theirs, ours, true):
                    yield f"{case.name}, tensor {place}: {said}"
            if len(found) != len(wanted):
                yield f"{case.name}: {len(found)} tensors, expected {len(wanted)}"


def _answers(call: Callable[..., Any], case: Case) -> list[Any]:
    """All that a call gives: what it returns, what it changed in place, and gradients."""
    given: list[Any] = [t.detach().clone() if isinstance(t, Tensor) else t for t in case.given]
    learned = [given[i].requires_grad_() for i in case.gradients]
    with torch.set_grad_enabled(bool(learned)):
        out = call(*given, **case.options)
        found = list(out) if isinstance(out, (tuple, list)) else [] if out is None else [out]
        if learned:
            if not (isinstance(out, Tensor) and out.requires_grad):
                raise InputError("the answer has no gradient")
            weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
            found += torch.autograd.grad((out * weights).sum(), learned)
    found += [given[i] for i in case.in_place]
    return [t.detach() if isinstance(t, Tensor) else t for t in found]


def _difference(found: Any, wanted: Tensor, truth: Tensor) -> str:
    """What is wrong with an answer, empty where nothing is."""
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}, expected a tensor"
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{list(found.shape)} {found.dtype}, expected {list(wanted.shape)} {wanted.dtype}"
    if not wanted.is_floating_point():
        off = int((found != wanted).sum())
        return f"{off} of {wanted.numel()} numbers differ" if off else ""
    eps, found, wanted = torch.finfo(wanted.dtype).eps, found.double(), wanted.double()
    apart = (found - truth).abs().masked_fill(found == truth, 0.0)
    finite = truth[truth.isfinite()].abs()
    size = max(1.0, float(finite.max())) if finite.numel() else 1.0  # cases are of about 1
    own = (wanted - truth).abs().masked_fill(wanted == truth, 0.0)
    allowed = max(_TIMES * float(own.max()), _ROUNDINGS * eps * size) if own.numel() else 0.0
    worst = float(apart.nan_to_num(nan=torch.inf).max()) if apart.numel() else 0.0
    return f"off by {worst:.2g} where {allowed:.2g} is allowed" if worst > allowed else ""
