"""The linear lens: closed form, fitted in seconds on the model's own samples (`linear_fit.py`).

It models how a state arises, not how a token reads off it: h_t = M e_t + C h_{t−1} + c + ε with ε ~ N(0, Q⁻¹), all by
least squares. The score of token v is then log p(h_t | v, h_{t−1}) = −½‖h_t − M e_v − C h_{t−1} − c‖²_Q, which is
(h_t − C h_{t−1} − c)ᵀQM e_v − ½ e_vᵀMᵀQM e_v up to a constant: one D×D map and one product with the embedding matrix.
Regressing the other way (e from h) shrinks every estimate towards the mean embedding and loses most of the accuracy.

After a wrong token u was verified, its state ĥ_u in the very same context is known, and the context drops out:
h_t − ĥ_u = M'(e_v − e_u) + ε'. The *change* lens scores the remaining candidates by that, far more sharply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.vocabulary import Vocabulary
from ..ops.best_two import BestTwo
from .normal_equations import NormalEquations
from .prior import DraftPrior
from .repair import Repair


@dataclass(frozen=True)
class Part:
    """One fitted scorer: proxy = features @ project `[F, D_e]`, score_v = proxy·e_v + bias_v; gram = MᵀQM."""

    project: Tensor
    gram: Tensor
    bias: Tensor

    @property
    def energy(self) -> Tensor:
        """e_vᵀ MᵀQM e_v, `[V]`; 0 for tokens that are no candidates."""
        return (-2 * self.bias).nan_to_num(0.0, 0.0, 0.0)


class LinearLens:
    """Scores tokens from states. Its parts: first: position 0; rest: later ones; change: after a wrong token was seen.

    accuracy: share of held-out self-written and random tokens whose top score is right, a hint for drafting lengths;
    repair: how its candidates are best ordered where the top score was wrong; used: tokens of use it has learned from,
    see `sharpen.py`; rank: directions that the scores of later rows are kept to, see `narrow.py`, None where to all;
    sums: what it was solved from, of one that was just fitted. energies: e_vᵀ MᵀQM e_v of parts `[V]`, where they are
    known: of a large vocabulary they take seconds.
    """

    kind = "linear"

    def __init__(
        self,
        vocabulary: Vocabulary,
        parts: dict[str, tuple[Tensor, Tensor]],
        accuracy: float = 0.0,
        repair: Repair | None = None,
        energies: dict[str, Tensor] | None = None,
    ):
        self.vocabulary, self.accuracy, self.repair = vocabulary, accuracy, repair or Repair()
        known = energies or {}
        self.parts = {
            name: Part(project, gram, token_bias(vocabulary, gram, known.get(name)))
            for name, (project, gram) in parts.items()
        }
        self._both, self._constant = split_rows(self.parts["rest"].project)
        self.best_two = BestTwo(vocabulary.embedding.matrix, self.parts["rest"].gram, vocabulary.embedding.factor)
        self.metric: Tensor | None = None
        self.prior: DraftPrior | None = None
        self.used = 0
        self.rank: int | None = None
        self.sums: NormalEquations | None = None

    def proxies(self, hidden: Tensor) -> Tensor:
        """What each row of whole texts says of its token, in the space of embeddings: `[b, T, D] → [b, T, D_e]`."""
        return two_row_map(hidden, self.parts["first"].project, self._both, self._constant)

    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """The token of the top score of every row and its lead over the next, `[b, T, D_e] → [b, T]` each."""
        return best_tokens(proxies, self.best_two, self.parts["first"].bias, self.parts["rest"].bias, 1.0)

    def draft(self, hidden: Tensor) -> Tensor:
        """`[b, T, D] → [b, T]`: the best token of every row of whole texts."""
        return self.best(self.proxies(hidden))[0]

    def list_by(self, metric: Tensor | None) -> None:
        """Lists are searched for in the directions in which tokens differ most in this metric `[D_e, D_e]`."""
        self.metric = metric
        self.best_two.list_by(metric)

    def lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """The best tokens of every row of whole texts, best first, and their scores: `[b, T, LISTED]` each."""
        return token_lists(proxies, self.best_two, self.parts["first"].bias, self.parts["rest"].bias, 1.0)

    def row_lists(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """As `lists`, of single rows `[n, D_e]`, none at position 0: `[n, LISTED]` each."""
        return self.best_two.shortlist(proxies, self.parts["rest"].bias, 1.0)

    def scores(self, proxies: Tensor, first: Tensor) -> Tensor:
        """log p(state | token) up to a constant, `[b, V]`, of single rows' proxies `[b, D_e]`; first `[b]` bool."""
        return self.vocabulary.embedding.scores(proxies, self.bias_at(first))

    def bias_at(self, first: Tensor) -> Tensor:
        """What a token scores whatever the state, `[b, V]`, at position 0 or later; first `[b]` bool."""
        return torch.where(first[:, None], self.parts["first"].bias, self.parts["rest"].bias)

    def change_scores(self, state: Tensor, wrong_state: Tensor, wrong: Tensor, ids: Tensor | None = None) -> Tensor:
        """The same once token `wrong [b]` was seen to give `wrong_state [b, D]` where `state [b, D]` was asked for; of
        the tokens `ids [b, C]` alone, where given."""
        proxy, bias = self.change_proxies(state, wrong_state, wrong)
        if ids is not None:
            return self.vocabulary.embedding.scores_of(proxy, ids) + bias[ids.clamp_min(0)]
        return self.vocabulary.embedding.scores(proxy, bias)

    def change_proxies(self, state: Tensor, wrong_state: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """What `change_scores` are the products of: proxies `[b, D_e]` and a bias `[V]`."""
        part = self.parts["change"]
        return (state - wrong_state) @ part.project + self.vocabulary.embedding[wrong] @ part.gram, part.bias

    @property
    def row_bias(self) -> Tensor:
        """What a token scores beyond position 0 whatever the state, `[V]`."""
        return self.parts["rest"].bias


def split_rows(project: Tensor) -> tuple[Tensor, Tensor]:
    """A map of [h_t; h_{t−1}; 1] as one product over rows, `[2D+1, E] → [D, 2E]`, and its constant `[E]`."""
    width = (len(project) - 1) // 2
    return torch.cat([project[:width], project[width:-1]], 1), project[-1]


def two_row_map(hidden: Tensor, first: Tensor, both: Tensor, constant: Tensor) -> Tensor:
    """Every row with the row before it, `[b, T, D] → [b, T, E]`; row 0, which has none, through `first [D+1, E]`."""
    here, before = (hidden @ both).chunk(2, -1)
    out = here + constant
    out[:, 1:] += before[:, :-1]
    out[:, 0] = features(hidden[:, 0]) @ first
    return out


def best_tokens(
    proxies: Tensor, best_two: BestTwo, first: Tensor, rest: Tensor, scale: Tensor | float | None
) -> tuple[Tensor, Tensor]:
    """argmax over tokens of proxy·e_v + bias_v, with a bias of its own at position 0, and its lead over the second
    largest: `[b, T, D_e] → [b, T]` each. The lead tells how likely the token is right (`Repair.error`). scale: of the
    bias of a likelihood in `rest`, None where it is none."""
    b, T, _ = proxies.shape
    opening, later = best_two(proxies[:, 0], first), best_two(proxies[:, 1:].flatten(0, 1), rest, scale)
    ids, leads = (torch.cat([one[:, None], more.view(b, T - 1)], 1) for one, more in zip(opening, later, strict=True))
    return ids, leads


def token_lists(
    proxies: Tensor, best_two: BestTwo, first: Tensor, rest: Tensor, scale: Tensor | float | None
) -> tuple[Tensor, Tensor]:
    """As `best_tokens`, but the best `LISTED` tokens of every row, best first, and their scores: `[b, T, LISTED]`."""
    b, T, _ = proxies.shape
    opening = best_two.shortlist(proxies[:, 0], first)
    later = best_two.shortlist(proxies[:, 1:].flatten(0, 1), rest, scale)
    ids, scores = (
        torch.cat([one[:, None], more.view(b, T - 1, more.shape[-1])], 1)
        for one, more in zip(opening, later, strict=True)
    )
    return ids, scores


def features(state: Tensor, previous: Tensor | None = None) -> Tensor:
    one = torch.ones(*state.shape[:-1], 1, device=state.device)
    return torch.cat([state, one] if previous is None else [state, previous, one], -1)


def token_bias(vocabulary: Vocabulary, gram: Tensor, energy: Tensor | None = None) -> Tensor:
    """−½ e_vᵀ MᵀQM e_v, −inf for tokens that are no candidates."""
    if energy is None:
        energy = torch.cat([((part @ gram) * part).sum(-1) for part in vocabulary.embedding.blocks()])
    return (-0.5 * energy).masked_fill(~vocabulary.allowed, float("-inf"))
