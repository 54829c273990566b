"""A lens made of one function, from states to estimates of their tokens' embedding rows: whoever has such a function, a
regression or a network, has a lens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..ops.best_two import BestTwo
from ..types import InputError
from .linear import best_tokens, token_bias, token_lists
from .prior import DraftPrior
from .repair import Repair
from .store import linear_lens


class EstimateLens:
    """Drafts the token whose embedding row is nearest to an estimate: override `estimate`.

    Estimates are taken to be off by Gaussian noise, whose mean square in one entry is `variance`, an attribute that may
    be set when it is measured: it tells how sure a draft is. Position 0, which has no context, and what a wrong token's
    state tells of the right one are as the linear lens has them, which is fitted on first use (seconds). accuracy:
    share of tokens that it drafts right, as far as is known.
    """

    kind = "estimate"

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, variance: float = 1.0, accuracy: float = 0.0):
        self.vocabulary, self.variance, self.accuracy = vocabulary, variance, accuracy
        self.linear = linear_lens(decoder, vocabulary)
        self.repair = Repair(sureness=1.0)  # leads are log-likelihoods
        self.prior: DraftPrior | None = None
        embedding = vocabulary.embedding
        squares = torch.cat([part.square().sum(-1) for part in embedding.blocks()])
        self._halves = token_bias(vocabulary, squares, squares)  # −½‖e_v‖²: with the product x·e_v, how near x is
        self._best = BestTwo(embedding.matrix, None, embedding.factor)

    def estimate(self, hidden: Tensor) -> Tensor:
        """The embedding rows of the tokens of whole texts, as far as their states tell: `[b, T, D] → [b, T, D_e]`. What
        it says of position 0 is not used."""
        raise NotImplementedError(f"{type(self).__name__} is an EstimateLens, and says nothing: define `estimate`")

    @torch.no_grad()
    def proxies(self, hidden: Tensor) -> Tensor:
        """See `Lens`."""
        first = self.linear.proxies(hidden[:, :1])
        estimated = self.estimate(hidden)
        if estimated.shape != (*hidden.shape[:2], first.shape[-1]):
            raise InputError(
                f"{type(self).__name__} estimates {list(estimated.shape)} from states {list(hidden.shape)}, expected "
                f"{[*hidden.shape[:2], first.shape[-1]]}: an embedding row for each"
            )
        return torch.cat([first, estimated[:, 1:].float() / self.variance], 1)

    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lens`."""
        return best_tokens(proxies, self._best, self._first, self.row_bias, None)

    def draft(self, hidden: Tensor) -> Tensor:
        """See `Lens`."""
        return self.best(self.proxies(hidden))[0]

    def lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lens`."""
        return token_lists(proxies, self._best, self._first, self.row_bias, None)

    def row_lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lens`."""
        return self._best.shortlist(proxies, self.row_bias)

    def scores(self, proxies: Tensor, first: Tensor) -> Tensor:
        """See `Lens`."""
        bias = torch.where(first[:, None], self._first, self.row_bias)
        return self.vocabulary.embedding.scores(proxies, bias)

    def change_scores(self, state: Tensor, wrong_state: Tensor, wrong: Tensor, ids: Tensor | None = None) -> Tensor:
        """See `Lens`."""
        return self.linear.change_scores(state, wrong_state, wrong, ids)

    def change_proxies(self, state: Tensor, wrong_state: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lens`."""
        return self.linear.change_proxies(state, wrong_state, wrong)

    @property
    def row_bias(self) -> Tensor:
        """See `Lens`."""
        return self._halves / self.variance

    @property
    def _first(self) -> Tensor:
        return self.linear.parts["first"].bias
