"""What is to be recovered, and how: all that a process needs to be told to take a share of it. No PyTorch yet."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.protocol import Strategy
    from ..types import Recovery, Status


@dataclass(frozen=True)
class Job:
    """The states of a file or folder, and the model that they are of.

    layer: None for the file's own, else −1; reading: the arguments of a `Reading`; tensor: as in `open_source`;
    insist: whatever the file says of its model and layer; states_dtype, compute_dtype: of the capture, instead of what
    the file says; max_memory: GiB to stay within on each device, shared out among the processes that it has;
    noise: what was added to the states, as `Noise.spec` has it, instead of what the file says, or `auto`.
    """

    states: Path
    model: str
    layer: int | str | None = None
    dtype: str = "float32"
    strategy: str | Strategy = "auto"
    tensor: str | None = None
    reading: tuple = ()
    insist: bool = False
    states_dtype: str | None = None
    compute_dtype: str | None = None
    batch_size: int | None = None
    max_memory: float | None = None
    noise: str | None = None


@dataclass(frozen=True)
class About:
    """What a process found out about a job when it opened it. names: of the files (or tensors) that the texts are of,
    None where there is one; starts: the first text of each; settings: what decides what is recovered, of shards."""

    lengths: list[int]
    names: list[str | None]
    starts: list[int]
    settings: dict
    device: str

    def part(self, index: int) -> int:
        """Which of the `names` a text is of."""
        return bisect_right(self.starts, index) - 1


@dataclass(frozen=True)
class Found:
    """A text that was recovered: the `Recovery` itself, or (for a file) its line. failure: status and position of the
    first token that is not certified."""

    index: int
    tokens: int
    forward_tokens: int
    certified: bool
    failure: tuple[Status, int] | None
    line: str = ""
    recovery: Recovery | None = None
