"""What the continuous search leaves behind (2607.00852 §4): loss curves, rank trajectories, and the failure signal.

Kept proxies allow ranks of any token afterwards: of the committed one, and of the true one where a reference is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..model.embedding import Embedding

FAILURE_LOSS = 1e-6  # fp32 states of unit scale: right tokens stay below 1e-11, wrong ones are above 1e-3


@dataclass(frozen=True)
class PositionTrace:
    """One position's search. loss `[k]`: MSE before each step; proxies `[n, D_e]` after `proxy_steps [n]` steps, the
    last one being the final proxy; metric: the distance candidates were ranked in."""

    loss: np.ndarray
    proxies: np.ndarray
    proxy_steps: np.ndarray
    metric: str

    def ranks(self, token: int, table: Tensor | Embedding) -> np.ndarray:
        """rank(v; u) `[n]`: rows of `table [V, D_e]` strictly nearer to each kept proxy than that of `token` (§3)."""
        proxies = torch.from_numpy(self.proxies).to(table.device)
        if isinstance(table, Tensor):
            distance, ids = ops.nearest_tokens(proxies, table, len(table), self.metric)
        else:
            distance, ids = table.nearest(proxies, len(table), self.metric)
        own = distance[ids == token][:, None]
        return (distance < own).sum(-1).cpu().numpy()


class Traces:
    """Traces of the texts now in the lanes: lane → position → trace."""

    def __init__(self):
        self._of: dict[int, dict[int, PositionTrace]] = {}

    def add(self, slot: int, position: int, trace: PositionTrace) -> None:
        self._of.setdefault(slot, {})[position] = trace

    def drop(self, slot: int) -> None:
        """The text in this lane is given up."""
        self._of.pop(slot, None)

    def take(
        self, slot: int, ids: np.ndarray, discrete_loss: np.ndarray, loss_ceiling: np.ndarray, table: Embedding
    ) -> dict[str, Any] | None:
        """The trace of a finished text, for `Recovery.trace`, or None where nothing was watched.

        positions: list of `PositionTrace` (None where a position was found without a search); loss, rank: their loss
        curve and the committed token's rank trajectory; rank_at_commit `[T]`: its rank at the final proxy, −1 for none;
        discrete_loss, cumulative_loss `[T]`; first_failure: of `first_failure` below.
        """
        found = self._of.pop(slot, None)
        if found is None:
            return None
        positions = [found.get(t) for t in range(len(ids))]
        ranks = [None if p is None else p.ranks(int(i), table) for p, i in zip(positions, ids, strict=True)]
        return {
            "positions": positions,
            "loss": [None if p is None else p.loss for p in positions],
            "rank": ranks,
            "rank_at_commit": np.array([-1 if r is None else int(r[-1]) for r in ranks], dtype=np.int64),
            "discrete_loss": discrete_loss,
            "cumulative_loss": np.cumsum(discrete_loss),
            "first_failure": first_failure(discrete_loss, loss_ceiling),
        }


def first_failure(
    discrete_loss: np.ndarray | Sequence[float], threshold: float | np.ndarray | Sequence[float] | None = FAILURE_LOSS
) -> int | None:
    """Where a recovery went wrong, told without a reference (§4.3), or None where it did not.

    discrete_loss `[T]`: MSE of each committed token's state. A right token stays at the noise floor; a wrong one lifts
    the running sum by decades, and all that follow lift it further. threshold `[T]`: what a right token's loss may be
    (`Recovery.loss_ceiling`: from the calibrated noise of the model, the layer and the precision of these states); the
    answer is the first t with ℒ_t above it. A single number bounds the running sum instead, as in the paper:
    the default fits fp32 states of unit scale, and nothing else.
    """
    loss = np.asarray(discrete_loss, dtype=np.float64)
    if threshold is None or np.ndim(threshold) == 0:
        right = np.cumsum(loss) <= (FAILURE_LOSS if threshold is None else threshold)
    elif np.shape(threshold) == loss.shape:
        right = loss <= np.asarray(threshold, dtype=np.float64)
    else:
        raise ValueError(
            f"{np.shape(threshold)} thresholds for {loss.shape} losses: expected one a position, or a number"
        )
    wrong = np.flatnonzero(~right)
    return int(wrong[0]) if len(wrong) else None


def true_ranks(trace: dict[str, Any], reference: Sequence[int], table: Tensor) -> list[np.ndarray | None]:
    """Rank trajectories of the tokens of a known `reference` (§4.1), one array a position; `table`: embedding rows."""
    pairs = zip(trace["positions"], reference, strict=True)
    return [None if p is None else p.ranks(int(token), table) for p, token in pairs]
