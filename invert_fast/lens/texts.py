"""Texts to train a lens on and to measure it on: what the model itself writes, mixed with random tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..storage.checkpoint import step_seed
from ..types import dtype_named
from .learned import LearnedLens
from .measure import accuracy
from .sampling import noisy, self_samples
from .settings import Fit

_POOL, _LENGTH, _HELD = 1536, 48, 128
_TOKENS = 2048  # a step
_LONG_EVERY, _LONG, _LONG_POOL = 3, 1024, 32  # every third step has long texts: they repeat what they said before
_SHARES, _OFTEN = (0.0, 0.15, 0.5, 1.0), (0.4, 0.2, 0.1, 0.3)  # of random tokens in a text, and how often each
_SCORED = 8192  # tokens scored a position: all of a vocabulary up to this, a sample of a larger one
_ROUNDINGS = {"any": (torch.float32, torch.float32, torch.float16, torch.bfloat16)}


class TrainingTexts:
    """Texts to train and to measure on, and their states as a capture would have stored them."""

    steps, rate, linear_rate = 1500, 2e-3, 2e-4  # see `TrainingData`
    patience: int | None = 5

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, fit: Fit, text: Sequence[Sequence[int]]):
        self.decoder, self.fit = decoder, fit
        self.tokens = vocabulary.allowed.nonzero().flatten()
        self.length = min(_LENGTH, decoder.max_length)
        rows = self_samples(decoder, vocabulary, _POOL + _HELD, self.length, fit.seed, shares=(0.0,))
        given = windows(text, self.length, decoder.device)
        if len(given):
            order = torch.randperm(len(given), generator=torch.Generator().manual_seed(fit.seed)).to(decoder.device)
            given = given[order.repeat(-(-len(rows) // len(order)))]
            rows[1::2] = given[: len(rows[1::2])]  # held-out ones too, though a short text repeats in both
        rows = vocabulary.representative[rows]  # tokens with equal rows are one token to a decoder
        self.rows, written = rows[_HELD:], rows[:_HELD]
        self.long_rows = self._long_rows(vocabulary, text)
        self.digest = int((rows.double() @ torch.arange(1.0, self.length + 1, device=rows.device).double()).sum())
        random = self.tokens[_randint(len(self.tokens), written.shape, fit.seed, -1).to(decoder.device)]
        self.held_ids = torch.stack([written, random], 1).flatten(0, 1)  # alternately
        self.held_states = torch.cat([self.states(part, i) for i, part in enumerate(self.held_ids.split(32))])

    def _long_rows(self, vocabulary: Vocabulary, text: Sequence[Sequence[int]]) -> Tensor:
        """A few long texts, `[n, _LONG]`: half from the texts that were given, if any is long enough."""
        length = min(_LONG, self.decoder.max_length)
        if length <= self.length:
            return self.rows[:0]
        rows = self_samples(self.decoder, vocabulary, _LONG_POOL, length, self.fit.seed + 1, shares=(0.0,))
        given = windows([ids for ids in text if len(ids) >= length // 4], length, rows.device)[: len(rows) // 2]
        rows[: len(given)] = given
        return vocabulary.representative[rows]

    def held(self, name: str) -> tuple[Tensor, Tensor]:
        first = ("written", "random").index(name)
        return self.held_ids[first::2], self.held_states[first::2]

    def batch(self, step: int) -> Tensor:
        """The texts of one step: random tokens mixed into the model's own."""
        rows = self.long_rows if len(self.long_rows) and step % _LONG_EVERY == _LONG_EVERY - 1 else self.rows
        length = rows.shape[1]
        count = max(1, _TOKENS // length)
        generator = torch.Generator().manual_seed(step_seed(self.fit.seed, step))
        chosen = rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]
        often = torch.multinomial(torch.tensor(_OFTEN), count, replacement=True, generator=generator)
        swap = torch.rand(count, length, generator=generator) < torch.tensor(_SHARES)[often][:, None]
        other = self.tokens[torch.randint(len(self.tokens), (count, length), generator=generator).to(rows.device)]
        return torch.where(swap.to(rows.device), other, chosen)

    @torch.no_grad()
    def states(self, ids: Tensor, step: int) -> Tensor:
        """`[b, T] → [b, T, D]` fp32, rounded and with noise as the fit asks."""
        return as_stored(self.decoder.states(ids).float(), self.fit, step)

    def loss(self, lens: LearnedLens, step: int) -> Tensor:
        """Of the texts of one step: cross entropy of the right tokens among all that are scored."""
        ids = self.batch(step)
        states, columns = self.states(ids, step), self.columns(ids, step)
        embedding, bias, right = lens.vocabulary.embedding, lens.bias(), ids[:, 1:].flatten()
        proxies = lens(states)[0][:, 1:].flatten(0, 1)
        if columns is None:
            return F.cross_entropy(embedding.scores(proxies, bias), right)
        scores = torch.addmm(bias[columns], proxies, embedding[columns].T)
        return F.cross_entropy(scores, torch.searchsorted(columns, right))

    def accuracy(self, lens: LearnedLens) -> tuple[float, float]:
        """top-1 and top-16 on the texts that are held out."""
        return accuracy(lens, self.held_ids, self.held_states)

    def columns(self, ids: Tensor, step: int) -> Tensor | None:
        """The tokens that are scored in a step: None for all, else those in the batch and a random sample."""
        if len(self.tokens) <= _SCORED:
            return None
        sample = self.tokens[_randint(len(self.tokens), (_SCORED // 2,), self.fit.seed, step).to(ids.device)]
        return torch.cat([ids.flatten(), sample]).unique()


def as_stored(states: Tensor, fit: Fit, step: int) -> Tensor:
    """States with the noise that is expected, rounded as they will be stored: by any dtype, by all in turn."""
    states = noisy(states, fit.noise, step_seed(fit.seed, step) + 1)
    roundings = _ROUNDINGS.get(fit.states_dtype) or (dtype_named(fit.states_dtype),)
    return states.to(roundings[step % len(roundings)]).float()


def windows(text: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
    """Texts cut into rows of `length` tokens, `[n, length]`; texts are run together, so that short ones count too."""
    joined = torch.tensor([i for ids in text for i in ids], dtype=torch.long, device=device)
    return joined[: len(joined) // length * length].view(-1, length)


def _randint(high: int, shape, seed: int, step: int) -> Tensor:
    return torch.randint(high, tuple(shape), generator=torch.Generator().manual_seed(step_seed(seed, step) + 2))
