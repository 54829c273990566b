"""What a learned lens of a large vocabulary is trained on: texts whose states were computed once and are kept.

There a state is dear and a row of scores of all tokens dearer. So each text is run once and comes in many steps, and
a token is told from those of its step, from some at random, and from the rivals that the linear lens names for it:
most of the vocabulary scores next to nothing, and teaches as much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..storage.checkpoint import step_seed
from .deepen import right
from .learned import LearnedLens
from .linear import LinearLens
from .mixture import Held
from .prior import draft_lists
from .settings import Fit
from .texts import as_stored

_TOKENS = 2048  # a step
_RANDOM, _RIVALS, _ROWS = 1024, 48, 1 << 26  # tokens beside those of a step; of a list; numbers in rows of these
_BYTES = 1 << 30  # of states that are kept
_LOOKED = 4  # steps whose proxies say by what to search


class GatheredTexts:
    """See `TrainingData` for what is asked of texts. Those to train on come by `add`."""

    steps, rate, linear_rate = 100_000, 1e-3, 1e-5
    patience: int | None = None

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, fit: Fit, linear: LinearLens, held: Held):
        self.decoder, self.vocabulary, self.fit, self.linear = decoder, vocabulary, fit, linear
        self.held, self.held_states = held, held.states
        self.length, self.digest = held.ids.shape[1], 0  # a fit that is cut short goes on with other texts
        self.allowed = vocabulary.allowed.nonzero().flatten()
        self.count = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._rivals = max(4, min(_RIVALS, _ROWS // (_TOKENS * vocabulary.embedding.shape[1])))

    def add(self, ids: Tensor, states: Tensor) -> None:
        """More texts `[b, T]` with their states `[b, T, D]`, while there is room."""
        if ids.shape[1] != self.length or self.count * states.shape[-1] * 4 > _BYTES:
            return
        lists = draft_lists(self.decoder, self.linear, states).ids[:, 1:, : self._rivals]
        self._parts.append((ids, states, lists.int()))
        self.count += ids.numel()

    def loss(self, lens: LearnedLens, step: int) -> Tensor:
        """Of the texts of one step: cross entropy of the right tokens among those that are scored."""
        ids, states, lists = self._batch(step)
        states = as_stored(states, self.fit, step)
        proxies, weight = self._together(lens, states)
        true, lists = ids[:, 1:].flatten(), lists.flatten(0, 1).long()
        columns = torch.cat([true, self._random(step)]).unique()
        place = torch.searchsorted(columns, true)
        rows, bias = self.vocabulary.embedding, lens.bias()
        among = torch.addmm(bias[columns], proxies, rows[columns].T)
        rivals = torch.bmm(rows[lists.clamp_min(0)], proxies[..., None])[..., 0] + bias[lists.clamp_min(0)]
        if weight is not None:
            prior = self._prior(states[:, :-1].flatten(0, 1), columns, lists, true, place)
            among, rivals = (scores + weight * of for scores, of in zip((among, rivals), prior, strict=True))
        twice = columns[torch.searchsorted(columns, lists).clamp_max(len(columns) - 1)] == lists
        rivals = rivals.masked_fill(twice | (lists < 0), float("-inf"))
        return F.cross_entropy(torch.cat([among, rivals], 1), place)

    @torch.no_grad()
    def list_by(self, lens: LearnedLens) -> None:
        """Have the lists of a trained lens searched for in the directions in which it tells tokens apart: those in
        which its proxies differ, the prior among them, as well as those of the likelihood that it began with."""
        if self.length < 2:
            return
        some = [self._together(lens, self._batch(step)[1])[0] for step in range(_LOOKED)]
        lens.linear.list_by(lens.log_scale.exp() * lens.linear.parts["rest"].gram + torch.cov(torch.cat(some).T))

    def accuracy(self, lens: LearnedLens) -> tuple[float, float]:
        """Shares of held-out tokens that are drafted right, and that are among the first sixteen."""
        return right(self.decoder, lens, self.held)

    def _together(self, lens: LearnedLens, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Proxies of all rows but the first of texts, `[n, D_e]`, with the prior where that is a product with a token's
        row, too; else what it is to be weighted by, `[n, 1]`, if at all."""
        (proxies, weights), tied = lens(states), self.decoder.tied_scale
        proxies = proxies[:, 1:].flatten(0, 1)
        if weights is None:
            return proxies, None
        weight = weights[:, 1:].reshape(-1, 1)
        if tied is None:
            return proxies, weight
        return proxies + (weight / tied) * self.decoder.head_input(states[:, :-1].flatten(0, 1)).float(), None

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, states and rivals of the texts of a step."""
        generator = torch.Generator().manual_seed(step_seed(self.fit.seed, step))
        sizes = torch.tensor([len(ids) for ids, _, _ in self._parts])
        chosen = torch.randint(int(sizes.sum()), (max(1, _TOKENS // self.length),), generator=generator)
        part = torch.bucketize(chosen, sizes.cumsum(0), right=True)
        row = chosen - (sizes.cumsum(0) - sizes)[part]
        at = [*zip(part.tolist(), row.tolist(), strict=True)]
        ids, states, lists = (torch.stack([self._parts[p][i][r] for p, r in at]) for i in range(3))
        return ids, states, lists

    def _random(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step_seed(self.fit.seed, step) + 2)
        return self.allowed[torch.randint(len(self.allowed), (_RANDOM,), generator=generator).to(self.allowed.device)]

    @torch.no_grad()
    def _prior(
        self, before: Tensor, columns: Tensor, lists: Tensor, true: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The model's logits of tokens after rows, of `columns` and of `lists`, up to the same constant a row."""
        among, rivals = self.decoder.log_probs(before, columns), self.decoder.logits_of(before, lists)
        shift = self.decoder.logits_of(before, true[:, None]) - among.gather(1, place[:, None])
        return among.clamp_min(-1e4), (rivals - shift).clamp_min(-1e4)
