"""Recorded log-probs → final hidden states, with what is known of their error."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..types import InputError, dtype_named
from .recorded import Logits, checked
from .solve import RowSolver, SharedSolver, Solution, ulp, weights
from .unembedding import Unembedding, unembedding

UNEXPLAINED = 0.05  # share of the variance of a row that no state explains, above which it is of no state at all
_CHECKABLE = 16  # entries beyond D + 1 that make a misfit mean something


@dataclass
class StateSolver:
    """Solves text after text; factorisations of shared ids are kept.

    unexplained: refuse texts whose rows no state of this model explains to within this share of their variance (the
    entries are shuffled, or of another model); 1 takes all.
    """

    decoder: Decoder
    unexplained: float = UNEXPLAINED
    head: Unembedding = field(init=False)

    def __post_init__(self):
        self.head = unembedding(self.decoder)
        self._shared: tuple[Tensor | None, int, SharedSolver] | None = None

    @torch.no_grad()
    def solve(self, logits: Logits, text: int = 0) -> Solution:
        """The final states of one text, `Solution.hidden [T, D]`. InputError for what cannot be this model's."""
        fingerprint = self.decoder.fingerprint()
        if logits.model is not None and logits.model != fingerprint:
            raise InputError(
                f"text {text}: log-probs are of model {logits.model}, this model is {fingerprint}: give the same "
                "checkpoint"
            )
        logits = checked(logits, self.head, self.decoder.usable_ids, text)
        spare = logits.values.shape[1] - self.head.width - 1
        found = self._solved(logits, spare, text)
        if found.unexplained is not None and spare >= _CHECKABLE and len(found.unexplained):
            worst = float(found.unexplained.median())
            if worst > self.unexplained:
                raise InputError(
                    f"text {text}: no states of this model give these numbers ({worst:.0%} of their variance is left "
                    f"unexplained, expected below {self.unexplained:.0%}): the ids are shuffled, or they are not of "
                    "this model"
                )
        return found

    def _solved(self, logits: Logits, spare: int, text: int) -> Solution:
        values, ids, head = logits.values, logits.ids, self.head
        n, device = values.shape[1], head.weight.device
        solver = RowSolver(head, n) if ids is not None and ids.dim() == 2 else self._solver(ids, n)
        hidden, chi, lost, deviation = [], [], [], []
        for start in range(0, len(values), solver.chunk):
            part = values[start : start + solver.chunk].to(device)
            own = ids[start : start + solver.chunk].to(device) if ids is not None and ids.dim() == 2 else ids
            bias = self._bias(own, n)
            y = self._linear(part, logits.kind, text) - bias
            variance = self._variance(part, y + bias, logits)
            if isinstance(solver, RowSolver):
                assert own is not None
                h, misfit, mean, trace = solver.solve(y, variance, own)
            else:
                h, misfit, mean = solver.solve(y, variance)
                trace = solver.inverse_trace.expand(len(y))
            spread = (y - y.mean(-1, keepdim=True)).square().sum(-1) / (n - 1)
            left = misfit.square().sum(-1) / max(spare, 1)
            hidden.append(h)
            lost.append((left / spread.clamp_min(1e-300)).clamp_max(1.0))
            if variance is None:
                expected = _fp32_noise(y)
                chi.append((left / expected).sqrt())
                error = expected * trace
            else:
                chi.append(((misfit.square() * weights(variance)).sum(-1) / max(spare, 1)).sqrt())
                error = trace / mean
            deviation.append(error.sqrt() / h.norm(dim=-1).clamp_min(1e-30))
        whole = [torch.cat(x) if x else torch.zeros(0, dtype=torch.float64) for x in (chi, lost, deviation)]
        states = torch.cat(hidden) if hidden else torch.zeros(0, head.width, dtype=torch.float64)
        return Solution(
            states,
            whole[0] if spare else None,
            whole[1] if spare else None,
            whole[2],
            solver.condition,
            spare,
        )

    def _solver(self, ids: Tensor | None, entries: int) -> SharedSolver:
        if self._shared is not None:
            theirs, count, solver = self._shared
            same = ids is theirs or (ids is not None and theirs is not None and torch.equal(ids, theirs))
            if same and count == entries:
                return solver
        self._shared = ids, entries, SharedSolver(self.head, ids, entries)
        return self._shared[2]

    def _bias(self, ids: Tensor | None, entries: int) -> Tensor:
        if self.head.bias is None:
            return torch.zeros((), dtype=torch.float64, device=self.head.weight.device)
        bias = self.head.bias.double()
        return bias[:entries] if ids is None else bias[ids.to(bias.device)]

    def _linear(self, part: Tensor, kind: str, text: int) -> Tensor:
        if self.head.softcap is not None and kind != "logits":
            raise InputError(
                f"text {text}: this model caps its logits at {self.head.softcap:g}, which log-probs do not let us "
                "undo: give raw logits (kind='logits', --kind logits), or hidden states (invert)"
            )
        return self.head.linear(part.double())

    def _variance(self, stored: Tensor, linear: Tensor, logits: Logits) -> Tensor | None:
        """Variance of what rounding did to each entry; None where all of it is fp32's, which is all alike.

        Rounding to a float is off by a uniform share of its ulp: ulp² / 12, so small numbers are told more exactly. A
        forward pass in half precision rounds the logits themselves, before log_softmax shifts them.
        """
        coarse = [d for d in (logits.dtype, logits.compute_dtype) if d in ("float16", "bfloat16")]
        if not coarse:
            return None
        variance = _fp32_noise(linear)[:, None].expand_as(linear)
        if logits.dtype in coarse:
            slope = 1.0 if self.head.softcap is None else self._slope(stored)
            variance = variance + (ulp(stored, dtype_named(logits.dtype)) / self.head.scale * slope).square() / 12
        if logits.compute_dtype in coarse:
            spread = linear - linear.mean(-1, keepdim=True)  # the logits themselves, as far as is known
            variance = variance + (ulp(spread.abs().clamp_min(1.0), dtype_named(logits.compute_dtype))).square() / 4
        return variance

    def _slope(self, stored: Tensor) -> Tensor:
        """How much the cap's inverse stretches an error of a stored logit."""
        assert self.head.softcap is not None
        return 1 / (1 - (stored.double() / self.head.softcap).square()).clamp_min(1e-6)


def _fp32_noise(linear: Tensor) -> Tensor:
    """`[t]` variance of an entry that was computed and stored in fp32: a few of its ulps."""
    return (2.0**-23 * linear.square().mean(-1).sqrt()).square().clamp_min(1e-30)
