"""What was recorded of the next token at every position of a text, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..types import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from .unembedding import Unembedding

KINDS = ("auto", "log_probs", "logits")
_SUM_TO_ONE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1.5e-1, "float64": 1e-3}  # |log of the sum of p|


@dataclass(frozen=True)
class Logits:
    """The next-token log-probs or logits of one text; row t follows token t.

    values: `[T, n]`, any float dtype; ids: None where row entries are tokens 0…n−1, `[n]` where all rows share a
    subset, `[T, n]` where each row has its own (top-k); kind: `log_probs`, `logits` or `auto` (told by whether full
    rows sum to one; for fewer entries nothing depends on it, unless the model caps its logits); dtype: precision they
    were stored in; compute_dtype: of the forward pass that made them (float32 where nobody says); model: fingerprint.
    """

    values: Tensor
    ids: Tensor | None = None
    kind: str = "auto"
    dtype: str = ""
    compute_dtype: str = "float32"
    model: str | None = None

    def __post_init__(self):
        from torch import Tensor

        if not isinstance(self.values, Tensor) or self.values.dim() != 2 or not self.values.is_floating_point():
            got = (
                f"{self.values.dtype} {list(self.values.shape)}"
                if isinstance(self.values, Tensor)
                else type(self.values).__name__
            )
            raise InputError(f"log-probs are {got}, expected a float tensor [tokens, entries] a text")
        if self.kind not in KINDS:
            raise InputError(f"kind '{self.kind}' is unknown, expected one of {', '.join(KINDS)}")
        if not self.dtype:
            object.__setattr__(self, "dtype", str(self.values.dtype).removeprefix("torch."))
        ids = self.ids
        if ids is not None:
            wanted = (list(self.values.shape), [self.values.shape[1]])
            if list(ids.shape) not in wanted or ids.is_floating_point():
                raise InputError(
                    f"ids are {ids.dtype} {list(ids.shape)}, expected integers of shape {wanted[1]} (shared) or "
                    f"{wanted[0]} (a row each), as many as values"
                )
            object.__setattr__(self, "ids", ids.long())

    def __len__(self) -> int:
        return self.values.shape[0]

    def last(self) -> Logits:
        """The last row alone: what follows the whole text."""
        own = self.ids is not None and self.ids.dim() == 2
        return replace(self, values=self.values[-1:], ids=self.ids[-1:] if own and self.ids is not None else self.ids)


def checked(logits: Logits, head: Unembedding, usable: int, text: int = 0) -> Logits:
    """The same with `kind` settled and rows cut to known tokens, or an InputError that names what is wrong.

    usable: ids that the tokenizer knows; rows of the unembedding past them are padding.
    """
    values, ids, n = logits.values, logits.ids, logits.values.shape[1]
    if ids is None:
        if n not in (head.size, usable):
            raise InputError(
                f"text {text}: rows have {n} entries, this model's vocabulary has {head.size}"
                + (f" ({usable} without padding rows)" if usable != head.size else "")
                + ": give the ids of the entries, or the model they are of"
            )
        if n > usable:  # padding rows: some servers write −inf or nonsense there
            padded, values = values, values[:, :usable]
            full = padded if bool(padded.isfinite().all()) else values
        else:
            full = values
        kind = _kind(logits, full, text)
    else:
        kind = logits.kind
        _check_ids(ids, head.size, text)
    need = head.width + 1
    if values.shape[1] < need:
        raise InputError(
            f"text {text}: rows have {values.shape[1]} entries, expected at least {need} (the width of the model's "
            f"states and one for the constant that log_softmax removes), better {need + 63}: record more tokens a "
            "position, or use `logits search` on short prompts"
        )
    finite = values.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        token = column if ids is None else int(ids[column] if ids.dim() == 1 else ids[row, column])
        value, count = float(values[row, column]), int((~finite[row]).sum())
        raise InputError(
            f"text {text}: position {row} has {count} entries that are not finite, the first {value} for token "
            f"{token}: expected log-probs before any top-p or top-k cut; leave such entries out, with ids for the rest"
        )
    return Logits(values, ids, kind, logits.dtype, logits.compute_dtype, logits.model)


def _kind(logits: Logits, full: Tensor, text: int) -> str:
    """log_probs where full rows sum to one, within what their precision leaves."""
    if not len(full):
        return "logits" if logits.kind == "auto" else logits.kind
    total = full.double().logsumexp(-1)
    off = total.abs() > _SUM_TO_ONE.get(logits.dtype, 1e-3)
    if not bool(off.any()):
        return "log_probs" if logits.kind == "auto" else logits.kind
    if logits.kind == "log_probs":
        row = int(off.int().argmax())
        raise InputError(
            f"text {text}: the probabilities at position {row} sum to e^{float(total[row]):.3g}, expected 1: not "
            "normalised; if these are logits, say kind='logits' (--kind logits)"
        )
    return "logits"


def _check_ids(ids: Tensor, size: int, text: int) -> None:
    if not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise InputError(
            f"text {text}: token id {low if low < 0 else high} is outside this model's vocabulary of {size}: "
            "give the model they are of"
        )
    ordered = ids.sort(-1).values
    same = ordered[..., 1:] == ordered[..., :-1]
    if bool(same.any()):
        raise InputError(
            f"text {text}: token id {int(ordered[..., 1:][same][0])} is there twice in one row, expected distinct ids"
        )
