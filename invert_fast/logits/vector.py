"""What the search behind a single vector is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..types import Status


@dataclass(frozen=True)
class VectorSearch:
    """beam: prompts exchanged further a round; exchanges: tried of each; rounds: at most; wide: exchanges tried of a
    single prompt in every fourth round, of the nearest first; starts: random starts; pool: nearest prompts kept;
    rivals: near exchanges tried of what was found; seed: of the starts."""

    beam: int = 8
    exchanges: int = 32
    rounds: int = 24
    wide: int = 1024
    starts: int = 32
    pool: int = 512
    rivals: int = 64
    seed: int = 0


@dataclass(frozen=True)
class VectorRecovery:
    """What one vector gave. residual: relative L2 of the final state by the model's own forward pass; runner_up: the
    nearest other prompt tried; forward_tokens: of all that was tried."""

    token_ids: list[int]
    text: str | None
    status: Status
    residual: float
    runner_up: float
    forward_tokens: int
    seconds: float
    alternatives: list[list[int]] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """The model gives the vector's state again for these tokens, and for nothing else that was tried."""
        return self.status == Status.CERTIFIED
