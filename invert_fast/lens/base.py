"""What a lens is: the one protocol of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ..model.vocabulary import Vocabulary
from .repair import Repair

if TYPE_CHECKING:
    from .prior import DraftPrior


class Lens(Protocol):
    """Scores tokens from states of whole texts, without a forward pass. b texts of T rows; n single rows.

    kind: what it is called; accuracy: share of held-out tokens whose top score is right; repair: how its candidates are
    best ordered where the top score was wrong; prior: how its short lists are drafted with the model's own prior, None
    where that was not measured.
    """

    kind: str
    vocabulary: Vocabulary
    accuracy: float
    repair: Repair
    prior: DraftPrior | None

    def proxies(self, hidden: Tensor) -> Tensor:
        """What each row of whole texts says of its token, in the space of embeddings: `[b, T, D] → [b, T, D_e]`."""
        ...

    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """The token of the top score of every row and its lead over the next, `[b, T, D_e] → [b, T]` each."""
        ...

    def draft(self, hidden: Tensor) -> Tensor:
        """`[b, T, D] → [b, T]`: the best token of every row of whole texts."""
        ...

    def lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """The best tokens of every row, best first, and their scores: `[b, T, LISTED]` each, see
        `BestTwo.shortlist`."""
        ...

    def row_lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """As `lists`, of single rows `[n, D_e]`, none at position 0: `[n, LISTED]` each."""
        ...

    def scores(self, proxies: Tensor, first: Tensor) -> Tensor:
        """log p(state | token) up to a constant, `[n, V]`, of single rows' proxies `[n, D_e]`; first `[n]` bool: which
        of them stand at position 0."""
        ...

    def change_scores(self, state: Tensor, wrong_state: Tensor, wrong: Tensor, ids: Tensor | None = None) -> Tensor:
        """The same once token `wrong [n]` was seen to give `wrong_state [n, D]` where `state [n, D]` was asked for; of
        the tokens `ids [n, C]` alone, where given: `[n, C]`."""
        ...

    def change_proxies(self, state: Tensor, wrong_state: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """What `change_scores` are the products of, with tokens' rows: proxies `[n, D_e]` and a bias `[V]`."""
        ...

    @property
    def row_bias(self) -> Tensor:
        """`scores` less the products of proxies and tokens' rows, beyond position 0: `[V]`."""
        ...


@runtime_checkable
class WeighingLens(Protocol):
    """A lens that may say itself how much of the model's own prior its scores want, text by text and row by row."""

    weighs: bool

    def weighed_proxies(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As `Lens.proxies`, and the weights of the prior `[b, T]`, 0 at position 0; where it `weighs`."""
        ...
