"""The linear lens: closed form, fitted in seconds on the model's own samples.

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
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.vocabulary import Vocabulary
from ..ops.best_two import BestTwo
from .repair import Repair, measure_repair
from .sampling import self_samples

_LENGTH, _CHANGE_TEXTS = 48, 128
_TOKENS_LEAST, _TOKENS_MOST = 16_384, 65_536
_RIDGE = 1e-6


@dataclass(frozen=True)
class Part:
    """One fitted scorer: proxy = features @ project `[F, D_e]`, score_v = proxy·e_v + bias_v; gram = MᵀQM."""

    project: Tensor
    gram: Tensor
    bias: Tensor


class LinearLens:
    """Scores tokens from states. Its parts: first: position 0; rest: later ones; change: after a wrong token was seen.

    accuracy: share of held-out self-written and random tokens whose top score is right, a hint for drafting lengths;
    repair: how its candidates are best ordered where the top score was wrong.
    """

    kind = "linear"

    def __init__(
        self,
        vocabulary: Vocabulary,
        parts: dict[str, tuple[Tensor, Tensor]],
        accuracy: float = 0.0,
        repair: Repair | None = None,
    ):
        self.vocabulary, self.accuracy, self.repair = vocabulary, accuracy, repair or Repair()
        self.parts = {
            name: Part(project, gram, token_bias(vocabulary, gram)) for name, (project, gram) in parts.items()
        }
        self._both, self._constant = split_rows(self.parts["rest"].project)
        self.best_two = BestTwo(vocabulary.embedding, self.parts["rest"].gram)

    def proxies(self, hidden: Tensor) -> Tensor:
        """What each row of whole texts says of its token, in the space of embeddings: `[b, T, D] → [b, T, D_e]`."""
        return two_row_map(hidden, self.parts["first"].project, self._both, self._constant)

    def best(self, proxies: Tensor) -> tuple[Tensor, Tensor]:
        """The token of the top score of every row and its lead over the next, `[b, T, D_e] → [b, T]` each."""
        return best_tokens(proxies, self.best_two, self.parts["first"].bias, self.parts["rest"].bias, 1.0)

    def draft(self, hidden: Tensor) -> Tensor:
        """`[b, T, D] → [b, T]`: the best token of every row of whole texts."""
        return self.best(self.proxies(hidden))[0]

    def scores(self, proxies: Tensor, first: Tensor) -> Tensor:
        """log p(state | token) up to a constant, `[b, V]`, of single rows' proxies `[b, D_e]`; first `[b]` bool."""
        bias = torch.where(first[:, None], self.parts["first"].bias, self.parts["rest"].bias)
        return proxies @ self.vocabulary.embedding.T + bias

    def change_scores(self, state: Tensor, wrong_state: Tensor, wrong: Tensor) -> Tensor:
        """The same once token `wrong [b]` was seen to give `wrong_state [b, D]` where `state [b, D]` was asked for."""
        part, embedding = self.parts["change"], self.vocabulary.embedding
        proxy = (state - wrong_state) @ part.project + embedding[wrong] @ part.gram
        return proxy @ embedding.T + part.bias


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
    proxies: Tensor, best_two: BestTwo, first: Tensor, rest: Tensor, scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """argmax over tokens of proxy·e_v + bias_v, with a bias of its own at position 0, and its lead over the second
    largest: `[b, T, D_e] → [b, T]` each. The lead tells how likely the token is right (`Repair.error`). scale: of the
    bias of a likelihood in `rest`."""
    b, T, _ = proxies.shape
    opening, later = best_two(proxies[:, 0], first), best_two(proxies[:, 1:].flatten(0, 1), rest, scale)
    ids, leads = (torch.cat([one[:, None], more.view(b, T - 1)], 1) for one, more in zip(opening, later, strict=True))
    return ids, leads


@torch.no_grad()
def fit_linear(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0, noise: float = 0.0) -> LinearLens:
    """Three least-squares solves over states of self-written and random texts. Deterministic from the seed.

    noise: standard deviation of Gaussian noise expected on the states, over the RMS of each: Q⁻¹ then has it too.
    """
    length = min(_LENGTH, decoder.max_length)
    tokens = min(max(40 * decoder.width, _TOKENS_LEAST), _TOKENS_MOST)
    ids = self_samples(decoder, vocabulary, max(6, tokens // length), length, seed)
    long = min(decoder.max_length, 1024)  # a few long texts: late positions must not surprise the lens
    tail = ids.flatten()[: max(1, tokens // 4 // long) * long]
    groups = [ids, tail[: len(tail) // long * long].view(-1, long)] if len(tail) >= long > length else [ids]
    held = len(ids) // 8
    states = [
        torch.cat([decoder.capture(part).float() for part in group.split(max(1, 16_384 // group.shape[1]))])
        for group in groups
    ]
    states = [noisy(part, noise, seed + number) for number, part in enumerate(states)]
    test_ids, test_states = ids[:held], states[0][:held]
    groups[0], states[0] = ids[held:], states[0][held:]

    parts = {"first": _fit_first(decoder, vocabulary, seed, noise)}
    if length > 1:
        parts["rest"] = _solve(
            vocabulary,
            torch.cat([g[:, 1:].flatten() for g in groups]),
            torch.cat([s[:, 1:].flatten(0, 1) for s in states]),
            torch.cat([s[:, :-1].flatten(0, 1) for s in states]),
        )
    else:  # a model of one position: there is no later one
        out = vocabulary.embedding.shape[1]
        parts["rest"] = test_states.new_zeros(2 * decoder.width + 1, out), test_states.new_zeros(out, out)
    drafting = LinearLens(vocabulary, {**parts, "change": parts["first"]})
    accuracy = (drafting.draft(test_states) == test_ids).float().mean().item() if held else 0.0
    change = groups[0][:_CHANGE_TEXTS], states[0][:_CHANGE_TEXTS]
    parts["change"] = _fit_change(decoder, vocabulary, drafting, *change, noise)
    lens = LinearLens(vocabulary, parts, accuracy)
    lens.repair = measure_repair(decoder, lens, test_ids, test_states) if held else lens.repair
    return lens


def noisy(states: Tensor, noise: float, seed: int) -> Tensor:
    """States `[..., D]` with Gaussian noise of `noise` times the RMS of each row. Deterministic from the seed."""
    if not noise:
        return states
    drawn = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed)).to(states.device)
    return states + noise * states.square().mean(-1, keepdim=True).sqrt() * drawn


def _fit_first(decoder: Decoder, vocabulary: Vocabulary, seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Position 0 has no context: its states are those of one-token texts."""
    ids = vocabulary.allowed.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = ids[torch.randperm(len(ids), generator=generator)[:8192].to(ids.device)]
    states = torch.cat([decoder.capture(part[:, None])[:, 0].float() for part in chosen.split(2048)])
    return _solve(vocabulary, chosen, noisy(states, noise, seed))


def _fit_change(
    decoder: Decoder, vocabulary: Vocabulary, lens: LinearLens, ids: Tensor, states: Tensor, noise: float
) -> tuple[Tensor, Tensor]:
    """Pairs of the true token and the most plausible wrong one in the same context, at every position."""
    B, T = ids.shape
    proxies = lens.proxies(states)
    lanes = Lanes(decoder, B, T)
    slots, one = torch.arange(B, device=ids.device), torch.ones(B, dtype=torch.long, device=ids.device)
    lanes.target_length[:] = T
    wrong, change = [], []
    for t in tqdm(range(T), desc="fit the lens", unit="position", delay=2, leave=False):
        true = ids[:, t : t + 1]
        other = lens.scores(proxies[:, t], one * t == 0).scatter(1, true, float("-inf")).argmax(-1, keepdim=True)
        hidden = lanes.fan_out(slots, decoder.embed(torch.cat([other, true], 1))).float()
        lanes.commit(slots, true, one, slots, one)
        wrong.append(other[:, 0])
        change.append(noisy(hidden[:, 1], noise, t) - hidden[:, 0])
    difference = vocabulary.embedding[ids.T.flatten()] - vocabulary.embedding[torch.cat(wrong)]
    return _solve_embeds(difference, torch.cat(change), None)


def _solve(
    vocabulary: Vocabulary, ids: Tensor, states: Tensor, previous: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    context = torch.ones(len(ids), 1, device=states.device)
    if previous is not None:
        context = torch.cat([previous, context], -1)
    return _solve_embeds(vocabulary.embedding[ids], states, context)


def _solve_embeds(embeds: Tensor, states: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Least squares of states on [embeds | context] → (project `[F, D_e]` over features [state | context], gram)."""
    width = embeds.shape[1]
    X = (embeds if context is None else torch.cat([embeds, context], -1)).double()
    Y = states.double()
    normal = X.T @ X
    normal.diagonal().add_(_RIDGE * normal.diagonal().mean())
    solution = torch.linalg.solve(normal, X.T @ Y)
    residual = Y - X @ solution
    covariance = residual.T @ residual / len(residual)
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + 1e-30)
    M = solution[:width]
    precision_M = torch.linalg.solve(covariance, M.T)  # Q Mᵀ: [D, D_e]
    project = precision_M if context is None else torch.cat([precision_M, -solution[width:] @ precision_M])
    return project.float(), (M @ precision_M).float()


def features(state: Tensor, previous: Tensor | None = None) -> Tensor:
    one = torch.ones(*state.shape[:-1], 1, device=state.device)
    return torch.cat([state, one] if previous is None else [state, previous, one], -1)


def token_bias(vocabulary: Vocabulary, gram: Tensor) -> Tensor:
    """−½ e_vᵀ MᵀQM e_v, −inf for tokens that are no candidates."""
    E = vocabulary.embedding
    return (-0.5 * ((E @ gram) * E).sum(-1)).masked_fill(~vocabulary.allowed, float("-inf"))
