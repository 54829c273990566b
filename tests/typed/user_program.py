# pyright: strict
"""What users write, as a type checker sees it: `make lint` looks at it in the tree, `make test-wheel` in a wheel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_type

from torch import Tensor

from invert_fast import Chain, Diagnosis, Exhaustive, Inverter, Reading, Recovery, Speculative, States, Status
from invert_fast.extend import (
    Backend,
    Block,
    Context,
    EstimateLens,
    Lens,
    LensMaker,
    Proposer,
    Run,
    Strategy,
    Working,
    auto,
    using,
)
from invert_fast.logits import Logits, VectorRecovery


def recover(texts: list[str]) -> list[str | None]:
    inverter = Inverter.from_pretrained("bundled", layer=-1, reading=Reading(centered=False))
    states = assert_type(inverter.capture(texts, store_dtype="bfloat16"), list[States])
    found = assert_type(inverter.invert(states, "auto", batch_size=4), list[Recovery])
    assert_type(found[0].certified, bool)
    assert_type(Status(int(found[0].status[0])).sentence, str)
    assert_type(found[0].cost.forward_tokens, int)
    assert_type(found[0].first_failure, int | None)
    return [one.raise_if_failed().text for one in found]


def explain(inverter: Inverter, states: Tensor, logits: Tensor) -> str:
    diagnosis = assert_type(inverter.diagnose(states), Diagnosis)
    assert_type(inverter.invert_logits([Logits(logits)]), list[Recovery])
    assert_type(inverter.invert_vector(logits[-1], length=3), list[VectorRecovery])
    return diagnosis.verdict


@dataclass(frozen=True)
class First:
    """A strategy, by its protocol."""

    name: str = "first"

    def bind(self, context: Context) -> Proposer:
        return FirstProposer(context)


class FirstProposer:
    def __init__(self, context: Context):
        self.context = context

    def begin(self, slots: Tensor) -> None:
        self.context.charge(slots, forward=0)

    def propose(self, slots: Tensor) -> Sequence[Run | Block | Working]:
        ids = self.context.vocabulary.allowed.nonzero().flatten()[:8]
        return [Block(slots, ids.expand(len(slots), -1))]


class Estimate(EstimateLens):
    def estimate(self, hidden: Tensor) -> Tensor:
        return hidden


class Own:
    """A backend, by its protocol."""

    name = "own-gelu"

    def function(self, op: str, device: str) -> Callable[..., Any] | None:
        return None


strategy: Strategy = First()
maker: LensMaker = lambda decoder, vocabulary, states_dtype: Estimate(decoder, vocabulary)  # noqa: E731
backend: Backend = Own()


def extended(inverter: Inverter, states: States, lens: Lens) -> list[Recovery]:
    with using(backend) as used:
        assert_type(used.name, str)
        inverter.invert(states, Chain(strategy, Speculative(lens=lens), Exhaustive()))
        return inverter.invert(states, auto(maker))
