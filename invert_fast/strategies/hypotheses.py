"""Hypotheses of a few texts side by side: beginnings with their weights, and those that were given up with theirs.

Weights are shares: of the hypotheses that go on, of those that were given up, and of tokens that were never tried they
sum to 1 for each text. What goes on shares its evidence out among its continuations; what was given up keeps its share
as if later evidence had been to it what it was, on average, to what went on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GIVEN_UP = 48  # remembered of each text: the heaviest
UNTRIED = -1


@dataclass(frozen=True)
class Marginals:
    """What is believed of each position of a text, given all its states: ids `[T]`, of the chosen hypothesis; shares:
    of each position, token → its posterior, of all tokens that stood there in some hypothesis."""

    ids: np.ndarray
    shares: list[dict[int, float]]


class Hypotheses:
    """weight `[B, W]` fp64, log: −∞ for none; ids of those that go on lie in the lanes. On the host."""

    def __init__(self, texts: int, width: int, length: int):
        self.weight = torch.full((texts, width), float("-inf"), dtype=torch.float64)
        self.weight[:, 0] = 0.0
        shape = texts, _GIVEN_UP
        self.lost = torch.full(shape, float("-inf"), dtype=torch.float64)
        self.lost_ids = torch.full((*shape, length), UNTRIED, dtype=torch.long)
        self.lost_length = torch.zeros(shape, dtype=torch.long)

    def give_up(self, texts: Tensor, weight: Tensor, ids: Tensor, lengths: Tensor) -> None:
        """Of `texts [b]`: beginnings `ids [b, G, M]` of `lengths [b, G]` with their log shares `weight [b, G]`."""
        kept, order = torch.cat([self.lost[texts], weight], 1).topk(_GIVEN_UP, -1)
        every = torch.cat([self.lost_ids[texts], ids], 1)
        self.lost[texts] = kept
        self.lost_ids[texts] = every.gather(1, order[..., None].expand(-1, -1, every.shape[-1]))
        self.lost_length[texts] = torch.cat([self.lost_length[texts], lengths], 1).gather(1, order)

    def marginals(self, text: int, ids: Tensor, start: int) -> Marginals:
        """Of a text whose hypotheses `ids [W, T]` are complete; nothing is asked of positions before `start`. Chosen is
        the one of which most tokens are right, by these very shares."""
        own, lost = self.weight[text], self.lost[text]
        length = ids.shape[1]
        sequences = torch.cat([ids, self.lost_ids[text, :, :length]]).numpy()
        weight = torch.cat([own, lost]).exp().numpy()
        lengths = np.concatenate([np.full(len(ids), length), self.lost_length[text].numpy()])
        shares: list[dict[int, float]] = [{} for _ in range(length)]
        for t in range(start, length):
            here = (lengths > t) & (weight > 0)
            total = weight[here].sum()
            for token, share in zip(sequences[here, t].tolist(), (weight[here] / total).tolist(), strict=True):
                shares[t][token] = shares[t].get(token, 0.0) + share
        right = [
            sum(shares[t][int(row[t])] for t in range(start, length)) if w > 0 else -1.0
            for row, w in zip(sequences[: len(ids)], weight, strict=False)
        ]
        for share in shares:
            share.pop(UNTRIED, None)
        return Marginals(sequences[int(np.argmax(right))], shares)
