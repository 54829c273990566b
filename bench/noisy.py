"""What the benches of noisy states share: real rows, a defence's noise on their states, and what is made of them.

Three ways are compared: `beam`; `argmin`, which takes the nearest token at every step, whatever the prior and what
follows say; and `lens`, the draft of the lens alone, which costs no forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from invert_fast import Beam, Inverter, Noise, States, Status
from invert_fast.defences import Gaussian, Laplace
from invert_fast.engine.protocol import Strategy
from invert_fast.lens.choose import choose_lens

STRATEGIES: dict[str, Strategy] = {"beam": Beam(), "argmin": Beam(width=1, prior=0.0, name="argmin")}
DEFENCES = {"gaussian": Gaussian, "laplacian": Laplace}


@dataclass
class Found:
    """Of some tokens: which are right and certified, what was stated of each, and what that cost."""

    right: list[bool] = field(default_factory=list)
    certified: list[bool] = field(default_factory=list)
    stated: list[float] = field(default_factory=list)
    forward: int = 0

    def figures(self) -> dict[str, float | int]:
        """Shares, and forward tokens a token."""
        right, certified = np.array(self.right), np.array(self.certified)
        return {
            "tokens": len(right),
            "right": float(right.mean()),
            "certified": float(certified.mean()),
            "wrong": int((certified & ~right).sum()),
            "forward": self.forward / len(right),
        }


def with_noise(states: Sequence[States], kind: str, level: float, seed: int = 0) -> list[States]:
    """States as a defence gives them away; text i with the seed `seed + i`."""
    defence = DEFENCES[kind](level)
    return [defence.apply(one, seed + i) for i, one in enumerate(states)]


def invert(
    inverter: Inverter,
    states: list[States],
    rows: list[list[int]],
    strategy: str | Strategy,
    noise: Noise | None = None,
) -> Found:
    """What comes of states of texts `rows`."""
    found = Found()
    for recovery, row in zip(inverter.invert(states, strategy, noise=noise), rows, strict=True):
        found.right += (recovery.token_ids == np.array(row)).tolist()
        found.certified += (recovery.status == Status.CERTIFIED).tolist()
        found.stated += [] if recovery.posterior is None else recovery.posterior.tolist()
        found.forward += recovery.cost.forward_tokens
    return found


def by_lens(inverter: Inverter, states: list[States], rows: list[list[int]]) -> Found:
    """The lens's best token of every row."""
    lens, found = choose_lens(inverter.decoder, inverter.vocabulary), Found()
    for one, row in zip(states, rows, strict=True):
        ids = lens.draft(one.hidden.float()[None].to(inverter.decoder.device))[0]
        found.right += (ids.cpu() == torch.tensor(row)).tolist()
    found.certified = [False] * len(found.right)
    return found
