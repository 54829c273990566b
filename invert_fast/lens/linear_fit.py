"""Fitting the linear lens: three least-squares solves over states of texts that the model writes itself."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.lanes import Lanes
from ..model.vocabulary import Vocabulary
from .linear import LinearLens
from .measure import measure_repair
from .sampling import noisy, self_samples

_LENGTH, _CHANGE_TEXTS = 48, 128
_TOKENS_LEAST, _TOKENS_MOST = 16_384, 65_536
_RIDGE = 1e-6


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
