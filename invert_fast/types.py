"""The data that passes between the parts: states in, recoveries out, and the errors a user reads.

Everybody may import this file. It imports nothing heavy; PyTorch, and what shows a recovery, only where they are used:
the command line begins here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .storage.noise import Noise as Noise
from .storage.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import torch
    from pandas import DataFrame  # type: ignore[import-not-found]  # an extra
    from torch import Tensor


_LONGEST_MESSAGE = 2000

QUANTISED = ("fp8_e4m3", "fp8_e5m2", "int8")  # what states are stored in and nobody computes in
_FP8 = {"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"}  # by PyTorch's names


class InputError(ValueError):
    """Input that cannot be worked on. The message is one line: the value found, what was expected, the next step. What
    it quotes of the input (names, words of a server) is written so that no terminal acts on it."""

    def __init__(self, message: str):
        super().__init__(visible(message, most=_LONGEST_MESSAGE))


class Status(enum.IntEnum):
    """What is known of one recovered position. `sentence` is what a user reads; it says what to do next."""

    CERTIFIED = 0
    BEST_MATCH = 1
    AMBIGUOUS = 2
    NOT_FOUND = 3
    AFTER_FAILURE = 4

    @property
    def label(self) -> str:
        """Its name as files and tables have it: `best match`."""
        return self.name.lower().replace("_", " ")

    @property
    def sentence(self) -> str:
        """What it means, and what to do next."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CERTIFIED: "This token, and no other, reproduces the state within the calibrated noise.",
    Status.BEST_MATCH: "This token is the nearest, but its state is further away than the calibrated noise: check that "
    "model, layer and precision are those of the capture, or let `diagnose` find out what happened to the states.",
    Status.AMBIGUOUS: "Several tokens reproduce the state equally well: see `alternatives`; states of higher precision "
    "may tell them apart unless their embedding rows are equal.",
    Status.NOT_FOUND: "No token tried reproduces the state: check model, layer and the tokens before this one, or let "
    "the strategy try more candidates (strategy='auto' tries all).",
    Status.AFTER_FAILURE: "A token before this one was not found, so this one is only a guess: mend the first failure.",
}


@dataclass(frozen=True)
class States:
    """The hidden states of one text.

    hidden: `[T, D]`, any float dtype; row t is the state of token t given tokens 0…t.
    layer: where they were taken: a Hugging Face `hidden_states` index, `block:k`, `final_norm` or `embeddings`.
    dtype: the precision they were stored in when captured (`float32` | `float16` | `bfloat16` | `fp8_e4m3` |
    `fp8_e5m2` | `int8`).
    compute_dtype: the precision of the forward pass that made them, or `int8`: with weights rounded to that; taken to
    be `dtype` where nobody says, and bf16 for states in fp8 or int8.
    model: fingerprint of the model they came from, or None when unknown.
    scale: of int8 (or fp8) codes in `hidden`, `[T]` or one for all: `hidden` is then their product, in fp32.
    noise: what was added to them, where that is known.
    """

    hidden: Tensor
    layer: int | str = -1
    dtype: str = ""
    compute_dtype: str = ""
    model: str | None = None
    scale: Tensor | None = None
    noise: Noise | None = None

    def __post_init__(self):
        from torch import Tensor

        if not isinstance(self.hidden, Tensor):
            raise InputError(
                f"states are a {type(self.hidden).__name__}, expected a torch tensor of shape [T, D] a text"
            )
        if self.hidden.dim() != 2:
            raise InputError(
                f"states have shape {list(self.hidden.shape)}, expected [tokens, width]: "
                "give one [T, D] tensor a text (or a batch [B, T, D] of them)"
            )
        kind = str(self.hidden.dtype).removeprefix("torch.")
        if not self.hidden.is_floating_point() and (self.scale is None or kind != "int8"):
            raise InputError(
                f"states are {self.hidden.dtype}, expected floating point: save the states, not token ids; int8 codes "
                "come with their scales, States(codes, scale=scales)"
            )
        object.__setattr__(self, "dtype", _FP8.get(self.dtype or kind, self.dtype or kind))
        if not self.compute_dtype:
            object.__setattr__(self, "compute_dtype", "bfloat16" if self.dtype in QUANTISED else self.dtype)
        if self.scale is not None or kind.startswith("float8"):
            self._unpack()

    def _unpack(self) -> None:
        """From codes to what they stand for."""
        from .storage.precisions import rows_of

        if self.scale is not None and list(self.scale.shape) not in ([len(self)], [len(self), 1], [1], []):
            raise InputError(
                f"scales have shape {list(self.scale.shape)}, the codes {list(self.hidden.shape)}, expected "
                f"[{len(self)}]: give one a row, or one for all"
            )
        object.__setattr__(self, "hidden", rows_of(self.hidden.detach(), self.scale))
        object.__setattr__(self, "scale", None)

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def precision(self) -> tuple[str, str]:
        """`dtype` and `compute_dtype`, unless the numbers say otherwise: see `storage.precisions`."""
        from .storage.precisions import precisions_of

        return precisions_of([self])[0]


def coarsest(states: Iterable[States]) -> tuple[str, str]:
    """The precision, stored and computed, of the coarsest of some states: of each the coarsest there is."""
    from .storage.precisions import precisions_of

    pairs = precisions_of([*states])
    stored = ("float64", "float32", "float16", "bfloat16", "int8", "fp8_e4m3", "fp8_e5m2")
    computed = ("float64", "float32", "int8", "float16", "bfloat16")
    if not pairs:
        return "float32", "float32"
    first, second = (
        max(names, key=lambda name: order.index(name) if name in order else len(order))  # that is refused further on
        for names, order in zip(zip(*pairs, strict=True), (stored, computed), strict=True)
    )
    return first, second


PARTS = ("draft", "repair", "rivals", "exhaustive")


@dataclass(frozen=True)
class Cost:
    """What a recovery cost. The unit that compares across machines is tokens through the forward pass.

    forward_tokens, backward_tokens: tokens computed, padding included; seconds: this text's share of the wall time.
    Of the forward tokens, draft: verified what was drafted; repair: searched for what was drafted wrong (whatever a
    strategy tries that does not draft); rivals: tried tokens that might have fitted as well as one that did;
    exhaustive: tried the rest of the vocabulary.
    """

    forward_tokens: int = 0
    backward_tokens: int = 0
    seconds: float = 0.0
    draft: int = 0
    repair: int = 0
    rivals: int = 0
    exhaustive: int = 0


@dataclass(frozen=True)
class Mended:
    """What was done to edited states before they were inverted (docs/edited.md). The certificates are of the states so
    mended.

    edit: `gap`, `front`, `order`, `steering` or `mixed`; sentence: what was done, in words, and what was not; rows: of
    each position the row that was given for it, −1 where there was none and its token was searched for; front: ids that
    stood before the first row; vector: `[D]`, what was taken out of every row.
    """

    edit: str
    sentence: str
    rows: tuple[int, ...] = ()
    front: tuple[int, ...] = ()
    vector: np.ndarray | None = field(default=None, repr=False, compare=False)


class Spelling:
    """Ids → their text, by a tokenizer: what shows the tokens of a recovery apart. A pickle leaves it behind:
    tokenizers are large, and know nothing of what was recovered."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, ids: list[int]) -> str:
        """Nothing skipped or cleaned up."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Spelling:
        return self


@dataclass(frozen=True)
class Recovery:
    """One recovered text; arrays run over its T positions.

    token_ids: int64; residual: relative L2 distance ‖ĥ_t − h_t‖ / ‖h_t‖; discrete_loss: the MSE ℒ_t^disc of the
    committed token (2607.00852, §2); margin: distance from the committed token's residual to that of the nearest rival:
    one that was tried, or else the calibrated lower bound for any other token; status: `Status` values; rank: how many
    candidates were tried before the committed one; steps: optimisation steps; alternatives: position → the other ids
    that fit as well; text: decoded tokens, None without a tokenizer; precision: how states were verified; loss_ceiling:
    the discrete loss that a right token stays below by the calibrated tolerance (`trace.first_failure` asks for it);
    error_bound: how likely the noise of the states makes the token another's, at most, given all before it: 1e-9 or
    less where it is certified, 1 where it is not (docs/certificates.md says what this rests on). Where states are
    coarse (bf16, fp16), margin is measured in the metric of their noise. spelling: how ids are spelt, for what shows
    tokens apart; None without a tokenizer, and in a copy that came out of a pickle. mended: what was done to the states
    first, where they were edited. posterior: how likely each token is right, given all states of the text, the noise
    and the model's own prior (strategy `beam`; None of any other).

    A notebook shows the tokens marked by what is known of them; `to_pandas` has a row a position.
    """

    token_ids: np.ndarray
    residual: np.ndarray
    discrete_loss: np.ndarray
    margin: np.ndarray
    status: np.ndarray
    rank: np.ndarray
    steps: np.ndarray
    text: str | None = None
    alternatives: dict[int, list[int]] = field(default_factory=dict)
    cost: Cost = Cost()
    precision: str = "float32"
    trace: dict | None = None
    loss_ceiling: np.ndarray | None = None
    error_bound: np.ndarray | None = None
    spelling: Spelling | None = field(default=None, repr=False, compare=False)
    mended: Mended | None = None
    posterior: np.ndarray | None = None

    @property
    def certified(self) -> bool:
        """Every position is certified (true of an empty text)."""
        return bool((self.status == Status.CERTIFIED).all())

    @property
    def first_failure(self) -> int | None:
        """The first position that is not certified, or None."""
        (bad,) = (self.status != Status.CERTIFIED).nonzero()
        return int(bad[0]) if len(bad) else None

    @property
    def cumulative_loss(self) -> np.ndarray:
        """Σ_{i≤t} ℒ_i^disc, the failure signal of 2607.00852 §4.3."""
        return self.discrete_loss.cumsum()

    def raise_if_failed(self) -> Recovery:
        """Return self when certified, else raise RuntimeError with the first failing position and what to do."""
        if (at := self.first_failure) is not None:
            status = Status(int(self.status[at]))
            raise RuntimeError(f"position {at} is {status.label} (residual {self.residual[at]:.1e}): {status.sentence}")
        return self

    def to_pandas(self) -> DataFrame:
        """A row a position: id, token, status, residual, margin and the rest. InputError without pandas."""
        from .reports.frames import of_recovery

        return of_recovery(self)

    def _repr_html_(self) -> str:
        from .reports.html import of_recovery

        return of_recovery(self)


def dtype_named(name: str) -> torch.dtype:
    """`"bfloat16"` → `torch.bfloat16`; only the float types that states come in."""
    import torch

    dtype = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float64": torch.float64,
    }.get(name)
    if dtype is None:
        raise InputError(f"precision '{name}' is unknown, expected float32, float16 or bfloat16")
    return dtype
