"""What a defence is: something done to the rows of a text before they leave the machine that made them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ..calls.settings import usual_settings
from ..types import States

Given = TypeVar("Given", States, Tensor)


class Defence(ABC):
    """A frozen dataclass of strengths. name: what it is called; `spec` is how `parse_defence` reads it.

    Whatever is random follows from the seed (and from the number and width of rows) alone.
    """

    name: ClassVar[str]

    @abstractmethod
    def rows(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """What is given away of the rows of one text, fp32 `[T, D]`."""

    def apply(self, states: Given, seed: int = 0) -> Given:
        """The states of one text, `States` or `[T, D]`, as they are given away: in the precision that they came in."""
        if isinstance(states, States):
            return replace(states, hidden=self.apply(states.hidden, seed))
        with usual_settings(), torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            return self.rows(states.detach().float().cpu(), generator).to(states)

    def apply_all(self, batch: Sequence[States], seed: int = 0) -> list[States]:
        """The states of several texts, each with randomness of its own."""
        return [self.apply(states, seed + index) for index, states in enumerate(batch)]

    def received(self, states: Given) -> Given:
        """What whoever is meant to have the states works with: what was given away, with a key undone if there is
        one."""
        return states

    def kept(self, length: int, seed: int = 0) -> list[int]:
        """Which of so many rows are given away at all."""
        return [*range(length)]

    @property
    def spec(self) -> str:
        """`name:strength`, with as many strengths as there are."""
        strengths = (repr(getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return ":".join([self.name, *(strength.removesuffix(".0") for strength in strengths)])

    def __str__(self) -> str:
        return self.spec
