"""Fitting the linear lens: three least-squares solves over states of texts that are written for it (`mixture.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.decoder import Decoder
from ..model.samples import opening_of
from ..model.transfer import told
from ..model.vocabulary import Vocabulary
from ..ops.best_two import MANY_TOKENS
from .linear import LinearLens, Part, token_bias
from .measure import measure_repair
from .mixture import Held, Mixture
from .narrow import best_rank, kept_to, wide
from .normal_equations import NormalEquations
from .prior_fit import fit_prior, measure_orders

_RIVALS = 16_384  # tokens, of a large vocabulary, that a plausible wrong one is looked for among
_SCORES_AT_ONCE = 1 << 21


@torch.no_grad()
def fit_linear(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0, noise: float = 0.0) -> LinearLens:
    """Three least-squares solves over states of written, prose and random texts. Deterministic from the seed.

    noise: standard deviation of Gaussian noise expected on the states, over the RMS of each: Q⁻¹ then has it too.
    """
    with tqdm(desc="fit the lens", unit="token", delay=2, leave=False) as bar:
        mixture = Mixture(decoder, vocabulary, seed, noise, bar)
        bar.total = mixture.work
        return _fit(mixture, bar)


def _fit(mixture: Mixture, bar: tqdm) -> LinearLens:
    decoder, vocabulary, device = mixture.decoder, mixture.vocabulary, mixture.allowed.device
    bar.set_description("fit the lens: write texts")
    ids = mixture.texts()
    bar.set_description("fit the lens: run texts")
    test, kept = mixture.held_out(ids), mixture.hold(ids[mixture.held_rows :][: mixture.kept_rows])
    parts = {"first": _fit_first(mixture)}
    sums = NormalEquations(vocabulary.embedding.shape[1], decoder.width, decoder.width + 1, device)
    if mixture.length > 1:
        add_texts(sums, vocabulary, kept.ids, kept.states)
        rest = ids[mixture.held_rows + mixture.kept_rows :]
        for part in (*rest.split(64), *mixture.long_texts(ids[mixture.held_rows :]).split(1)):
            if len(part):  # of no texts at all, `split` makes one part
                add_texts(sums, vocabulary, part, mixture.run(part))
        bar.set_description("fit the lens: solve")
        parts["rest"] = sums.solve()
    else:  # a model of one position: there is no later one
        out = vocabulary.embedding.shape[1]
        parts["rest"] = test.states.new_zeros(2 * decoder.width + 1, out), test.states.new_zeros(out, out)
    lens = LinearLens(vocabulary, parts)
    lens.sums = sums if sums.count else None
    if vocabulary.size >= MANY_TOKENS and wide(sums.count, decoder.width):
        lens = kept_to(lens, best_rank(decoder, lens, test.ids, test.states))
    bar.set_description("fit the lens: pairs")
    project, gram = _fit_change(mixture, lens, kept)
    lens.parts["change"] = Part(project, gram, token_bias(vocabulary, gram))
    bar.set_description("fit the lens: measure")
    measure(decoder, lens, test)
    return lens


def measure(decoder: Decoder, lens: LinearLens, test: Held) -> None:
    """Give a lens that was solved what held-out texts tell: its prior and lists, its accuracy, the sizes of repairs."""
    if lens.vocabulary.size >= MANY_TOKENS:
        lists = fit_prior(decoder, lens, test.ids, test.states)
        drafted = lists.proxies, lists.ids[..., 0], lists.leads
    else:
        lists, proxies = None, lens.proxies(test.states)
        drafted = proxies, *lens.best(proxies)
    lens.accuracy = (drafted[1] == test.ids).float().mean().item()
    if lists is not None and lens.prior is not None:
        lens.repair = measure_orders(decoder, lens, test.ids, test.states, test.lanes, lists)
    else:
        lens.repair = measure_repair(decoder, lens, test.ids, test.states, test.lanes, drafted)


def add_texts(sums: NormalEquations, vocabulary: Vocabulary, ids: Tensor, states: Tensor) -> None:
    """Every token of texts `[b, T]` but the first of each."""
    embeds = vocabulary.embedding[ids[:, 1:].flatten()]
    sums.add(embeds, states[:, 1:].flatten(0, 1), states[:, :-1].flatten(0, 1))


def _fit_first(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Position 0 has no context: its states are those of one-token texts."""
    decoder, vocabulary, ids = mixture.decoder, mixture.vocabulary, mixture.allowed
    chosen = ids[torch.randperm(len(ids), generator=mixture.generator)[: mixture.singles].to(ids.device)]
    chosen = torch.cat([chosen, vocabulary.representative[chosen.new_tensor(opening_of(decoder))]])
    sums = NormalEquations(vocabulary.embedding.shape[1], decoder.width, 1, ids.device)
    for part in chosen.split(2048):
        sums.add(vocabulary.embedding[part], mixture.run(part[:, None])[:, 0])
    return sums.solve()


def _fit_change(mixture: Mixture, lens: LinearLens, kept: Held) -> tuple[Tensor, Tensor]:
    """Pairs of the true token and the most plausible wrong one in the same context, at every position of a few texts:
    the texts stay as they are, and one pass asks what else might have stood at each."""
    decoder, vocabulary = mixture.decoder, mixture.vocabulary
    tokens = mixture.random(_RIVALS).unique() if vocabulary.size > _RIVALS else mixture.allowed
    embedding = vocabulary.embedding[tokens]
    proxies, (B, T) = lens.proxies(kept.states), kept.ids.shape
    slots, positions = torch.arange(B, device=kept.ids.device).repeat_interleave(T), _positions(kept.ids)
    wrong = []
    for slot, position in _split(max(1, _SCORES_AT_ONCE // len(tokens)), slots, positions):
        true, first = kept.ids[slot, position], position == 0
        bias = torch.where(first[:, None], lens.parts["first"].bias[tokens], lens.parts["rest"].bias[tokens])
        scores = proxies[slot, position] @ embedding.T + bias
        wrong.append(tokens[scores.masked_fill_(true[:, None] == tokens, float("-inf")).argmax(-1)])
    sums = NormalEquations(vocabulary.embedding.shape[1], decoder.width, 0, slots.device)
    for slot, position, other in _split(kept.lanes.at_once, slots, positions, torch.cat(wrong)):
        lane, place = told(slot, position)
        hidden = kept.lanes.fan_out_at(lane, place, other[:, None])[:, 0].float()
        embeds = vocabulary.embedding[kept.ids[slot, position]] - vocabulary.embedding[other]
        sums.add(embeds, kept.states[slot, position] - hidden)
        mixture.bar.update(len(slot))
    return sums.solve()


def _split(rows: int, *tables: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(table.split(rows) for table in tables), strict=True)


def _positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape).flatten()
