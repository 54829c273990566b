"""What one state says of every token of a short text: least squares of the last state on all embeddings.

h_T = Σ_i M_i e_i + c + ε, ε ~ N(0, Q⁻¹), closed form, one solve a length, over texts that the model writes itself. It
orders candidates and nothing else: what is reported is verified by the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..lens.sampling import self_samples
from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..storage import cache

_RIDGE = 1e-4
_TEXTS_LEAST, _TEXTS_MOST, _PER_DIMENSION = 4096, 49152, 8
_PASS = 4096  # tokens


@dataclass(frozen=True)
class OffsetLens:
    """In coordinates where Q is the identity: `whiten [D, D]` takes states there (row vectors); `move [T, V, D]` is
    what each token adds at each place, `square [T, V]` its squared length, `constant [D]`."""

    whiten: Tensor
    move: Tensor
    square: Tensor
    constant: Tensor

    def scores(self, target: Tensor, ids: Tensor, state: Tensor | None, only: int | None = None) -> Tensor:
        """Squared whitened distance that is left of `target [..., D]` after each single exchange in `ids [..., T]`:
        `[..., T, V]`, smaller is better.

        state `[..., D]`: what `ids` give by the model; None: as the lens believes; only: one place, `[..., 1, V]`.
        """
        place = torch.arange(len(self.move), device=ids.device)
        now = self.move[place, ids]  # [..., T, D]
        here = self.constant + now.sum(-2) if state is None else state @ self.whiten
        gap = (target @ self.whiten - here)[..., None, :] + now
        move, square = self.move, self.square
        if only is not None:
            gap, move, square = gap[..., only : only + 1, :], move[only : only + 1], square[only : only + 1]
        products = [gap[..., place, :] @ move[place].T for place in range(len(move))]
        return square - 2 * torch.stack(products, -2) + gap.square().sum(-1, keepdim=True)


@torch.no_grad()
def offset_lenses(decoder: Decoder, vocabulary: Vocabulary, longest: int, seed: int = 0) -> list[OffsetLens]:
    """Lenses for texts of 1 … `longest` tokens; sampled and solved once, then read from the cache folder."""
    embedding = vocabulary.embedding
    width = embedding.shape[1]
    key = cache.key(decoder.identity, "offsets", str(longest), str(seed))
    stored = _read(key, decoder.device)
    if stored is None:
        count = max(_TEXTS_LEAST, min(_TEXTS_MOST, _PER_DIMENSION * longest * width))
        ids = self_samples(decoder, vocabulary, count, longest, seed)
        parts = ids.split(max(1, _PASS // longest))
        states = [decoder.states(part).float() for part in tqdm(parts, desc="sample states", delay=2, leave=False)]
        hidden = torch.cat(states)
        stored = {}
        for length in range(1, longest + 1):
            solution, whiten = _solve(embedding[ids[:, :length]].flatten(1), hidden[:, length - 1])
            stored |= {f"solution{length}": solution, f"whiten{length}": whiten}
        _write(key, stored)
    lenses = []
    for length in range(1, longest + 1):
        solution, whiten = stored[f"solution{length}"], stored[f"whiten{length}"]
        move = torch.stack([embedding.mapped(part @ whiten) for part in solution[:-1].split(width)])
        lenses.append(OffsetLens(whiten, move, move.square().sum(-1), solution[-1] @ whiten))
    return lenses


def _solve(embeds: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """(solution `[T · D_e + 1, D]`, whitening `[D, D]`) of states on embeddings and a constant."""
    X = torch.cat([embeds, torch.ones_like(embeds[:, :1])], -1)
    parts = list(zip(X.split(8192), states.split(8192), strict=True))
    normal = sum((x.double().T @ x.double() for x, _ in parts), torch.zeros((), dtype=torch.float64, device=X.device))
    right = sum((x.double().T @ y.double() for x, y in parts), torch.zeros((), dtype=torch.float64, device=X.device))
    assert isinstance(normal, Tensor)
    assert isinstance(right, Tensor)
    normal.diagonal().add_(_RIDGE * normal.diagonal().mean())
    solution = torch.linalg.solve(normal, right)
    error = states.double() - torch.cat([x.double() @ solution for x, _ in parts])
    covariance = error.T @ error / len(error)
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + 1e-12)
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return solution.float(), whiten.float()


def _read(key: str, device: torch.device) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = cache.path(key)
    try:
        return None if found is None else load_file(found, device=str(device))
    except (SafetensorError, OSError):
        return None


def _write(key: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    cache.write(key, save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}))
