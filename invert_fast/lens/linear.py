"""The linear lens: closed form, fitted in seconds on the model's own samples.

It models how a state arises, not how a token reads off it: h_t = M e_t + C h_{t−1} + c + ε with ε ~ N(0, Q⁻¹), all by
least squares. The score of token v is then log p(h_t | v, h_{t−1}) = −½‖h_t − M e_v − C h_{t−1} − c‖²_Q, which is
(h_t − C h_{t−1} − c)ᵀQM e_v − ½ e_vᵀMᵀQM e_v up to a constant: one D×D map and one product with the embedding matrix.
Regressing the other way (e from h) shrinks every estimate towards the mean embedding and loses most of the accuracy.

After a wrong token u was verified, its state ĥ_u in the very same context is known, and the context drops out:
h_t − ĥ_u = M'(e_v − e_u) + ε'. The *change* lens scores the remaining candidates by that, far more sharply.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from .. import cache
from ..lanes import Lanes
from ..model import Decoder
from ..vocabulary import Vocabulary
from .sampling import self_samples

log = logging.getLogger("invert_fast")

_VERSION = "linear-1"
_LENGTH, _CHANGE_TEXTS = 48, 128
_RIDGE, _SCORES_BYTES = 1e-6, 1 << 26


@dataclass(frozen=True)
class _Part:
    """One fitted scorer: proxy = features @ project `[F, D_e]`, score_v = proxy·e_v + bias_v; gram = MᵀQM."""

    project: Tensor
    gram: Tensor
    bias: Tensor


class LinearLens:
    """Scores tokens from states. first: position 0; rest: later positions; change: after one wrong token is verified.

    accuracy: share of held-out self-written and random tokens whose top score is right, a hint for drafting lengths.
    """

    def __init__(self, vocabulary: Vocabulary, parts: dict[str, tuple[Tensor, Tensor]], accuracy: float):
        self.vocabulary, self.accuracy, self.embedding = vocabulary, accuracy, vocabulary.embedding
        self.parts = {name: _Part(project, gram, _bias(vocabulary, gram)) for name, (project, gram) in parts.items()}

    def draft(self, hidden: Tensor) -> Tensor:
        """The best token of every row of whole texts, `[b, T, D] → [b, T]`; few rows are scored at a time."""
        rest = self.parts["rest"]
        first = self._best(_features(hidden[:, 0]) @ self.parts["first"].project, self.parts["first"].bias)
        proxies = _features(hidden[:, 1:], hidden[:, :-1]) @ rest.project
        return torch.cat([first[:, None], self._best(proxies.flatten(0, 1), rest.bias).view(proxies.shape[:2])], 1)

    def scores(self, state: Tensor, previous: Tensor, first: Tensor) -> Tensor:
        """log p(state | token) up to a constant, `[b, V]`, of rows `[b, D]` after rows `previous`; first `[b]` bool."""
        start, rest = self.parts["first"], self.parts["rest"]
        return torch.where(
            first[:, None],
            _features(state) @ start.project @ self.embedding.T + start.bias,
            _features(state, previous) @ rest.project @ self.embedding.T + rest.bias,
        )

    def change_scores(self, state: Tensor, wrong_state: Tensor, wrong: Tensor) -> Tensor:
        """The same once token `wrong [b]` was seen to give `wrong_state [b, D]` in this context."""
        part = self.parts["change"]
        proxy = (state - wrong_state) @ part.project + self.embedding[wrong] @ part.gram
        return proxy @ self.embedding.T + part.bias

    def _best(self, proxies: Tensor, bias: Tensor) -> Tensor:
        rows = max(1, _SCORES_BYTES // (4 * len(bias)))
        return torch.cat(
            [torch.addmm(bias, part, self.embedding.T).argmax(-1) for part in proxies.split(rows)]
            or [proxies.new_zeros(0, dtype=torch.long)]
        )


def load_or_fit(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0) -> LinearLens:
    """The lens of this model and layer from the cache folder, else fitted now (seconds) and kept there."""
    key = cache.key(decoder, _VERSION, str(seed)) + ".safetensors"
    found = cache.path(key)
    if found is not None:
        try:
            return _stored(found, decoder, vocabulary)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("the stored lens %s is unreadable (%s): fitting it again", found, error)
    log.info(
        "fitting the linear lens of %s, %s (once; kept in the cache folder)", decoder.fingerprint(), decoder.layer.name
    )
    lens = fit(decoder, vocabulary, seed)
    tensors = {
        f"{name}.{what}": getattr(part, what).contiguous()
        for name, part in lens.parts.items()
        for what in ("project", "gram")
    }
    cache.write(key, save(tensors, metadata={"accuracy": json.dumps(lens.accuracy), "format": _VERSION}))
    return lens


def _stored(path: Path, decoder: Decoder, vocabulary: Vocabulary) -> LinearLens:
    """The lens in a file of the cache folder; ValueError unless it is whole and of this model's shapes."""
    width, out = decoder.width, vocabulary.embedding.shape[1]
    parts = {}
    with safe_open(path, framework="pt", device=str(decoder.device)) as file:
        accuracy = float((file.metadata() or {})["accuracy"])
        for name, features in (("first", width + 1), ("rest", 2 * width + 1), ("change", width)):
            project, gram = file.get_tensor(f"{name}.project"), file.get_tensor(f"{name}.gram")
            if project.shape != (features, out) or gram.shape != (out, out):
                raise ValueError(f"{name} has shapes {list(project.shape)} and {list(gram.shape)}")
            if not (project.isfinite().all() and gram.isfinite().all()):
                raise ValueError(f"{name} is not finite")
            parts[name] = project, gram
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy {accuracy}")
    return LinearLens(vocabulary, parts, accuracy)


@torch.no_grad()
def fit(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0) -> LinearLens:
    """Three least-squares solves over states of self-written and random texts. Deterministic from the seed."""
    length = min(_LENGTH, decoder.max_length)
    tokens = min(max(40 * decoder.width, 16_384), 65_536)
    ids = self_samples(decoder, vocabulary, max(6, tokens // length), length, seed)
    long = min(decoder.max_length, 1024)  # a few long texts: late positions must not surprise the lens
    tail = ids.flatten()[: max(1, tokens // 4 // long) * long]
    groups = [ids, tail[: len(tail) // long * long].view(-1, long)] if len(tail) >= long > length else [ids]
    held = len(ids) // 8
    states = [
        torch.cat([decoder.capture(part).float() for part in group.split(max(1, 16_384 // group.shape[1]))])
        for group in groups
    ]
    test_ids, test_states = ids[:held], states[0][:held]
    groups[0], states[0] = ids[held:], states[0][held:]

    parts = {"first": _fit_first(decoder, vocabulary, seed)}
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
    draft_lens = LinearLens(vocabulary, {**parts, "change": parts["first"]}, 0.0)
    accuracy = (draft_lens.draft(test_states) == test_ids).float().mean().item() if held else 0.0
    parts["change"] = _fit_change(decoder, vocabulary, draft_lens, groups[0][:_CHANGE_TEXTS], states[0][:_CHANGE_TEXTS])
    return LinearLens(vocabulary, parts, accuracy)


def _fit_first(decoder: Decoder, vocabulary: Vocabulary, seed: int) -> tuple[Tensor, Tensor]:
    """Position 0 has no context: its states are those of one-token texts."""
    ids = vocabulary.allowed.nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = ids[torch.randperm(len(ids), generator=generator)[:8192].to(ids.device)]
    states = torch.cat([decoder.capture(part[:, None])[:, 0].float() for part in chosen.split(2048)])
    return _solve(vocabulary, chosen, states)


def _fit_change(
    decoder: Decoder, vocabulary: Vocabulary, lens: LinearLens, ids: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """Pairs of the true token and the most plausible wrong one in the same context, at every position."""
    B, T = ids.shape
    previous = torch.cat([states[:, :1], states[:, :-1]], 1)
    lanes = Lanes(decoder, B, T)
    slots, one = torch.arange(B, device=ids.device), torch.ones(B, dtype=torch.long, device=ids.device)
    lanes.target_length[:] = T
    wrong, change = [], []
    for t in tqdm(range(T), desc="fit the lens", unit="position", delay=2, leave=False):
        true = ids[:, t : t + 1]
        scores = lens.scores(states[:, t], previous[:, t], one * t == 0).scatter(1, true, float("-inf"))
        other = scores.argmax(-1, keepdim=True)
        hidden = lanes.fan_out(slots, decoder.embed(torch.cat([other, true], 1))).float()
        lanes.commit(slots, true, one, slots, one)
        wrong.append(other[:, 0])
        change.append(hidden[:, 1] - hidden[:, 0])
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


def _features(state: Tensor, previous: Tensor | None = None) -> Tensor:
    one = torch.ones(*state.shape[:-1], 1, device=state.device)
    return torch.cat([state, one] if previous is None else [state, previous, one], -1)


def _bias(vocabulary: Vocabulary, gram: Tensor) -> Tensor:
    """−½ e_vᵀ MᵀQM e_v, −inf for tokens that are no candidates."""
    E = vocabulary.embedding
    return (-0.5 * ((E @ gram) * E).sum(-1)).masked_fill(~vocabulary.allowed, float("-inf"))
