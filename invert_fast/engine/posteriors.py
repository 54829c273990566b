"""What a strategy believes of the tokens it proposes: how likely each is the right one, given all states of a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RIVAL = 1e-3  # of the posterior: a token with less is not named


class Posteriors:
    """Of the texts now in the lanes: lane → of each position, token → its posterior."""

    def __init__(self):
        self._of: dict[int, Sequence[dict[int, float]]] = {}

    def add(self, slot: int, shares: Sequence[dict[int, float]]) -> None:
        """shares: of every position of the text in this lane. A search that began behind the first position says
        nothing of those before: what was known of them stays."""
        before = self._of.get(slot, ())
        self._of[slot] = [own or (before[t] if t < len(before) else {}) for t, own in enumerate(shares)]

    def drop(self, slot: int) -> None:
        """The text in this lane is given up, or another one begins."""
        self._of.pop(slot, None)

    def take(self, slot: int, ids: np.ndarray) -> tuple[np.ndarray | None, dict[int, list[int]]]:
        """Of a finished text of `ids [T]`: the posterior of each token `[T]`, None where nobody believed anything; and
        position → other tokens that have some of it, likeliest first. 0 for a token that was no hypothesis."""
        shares = self._of.pop(slot, None)
        if shares is None or len(shares) != len(ids):
            return None, {}
        own = np.array([share.get(int(token), 0.0) for share, token in zip(shares, ids, strict=True)])
        others = {
            t: [
                token
                for token, p in sorted(share.items(), key=lambda pair: -pair[1])
                if token != ids[t] and p >= _RIVAL
            ]
            for t, share in enumerate(shares)
        }
        return own, others
