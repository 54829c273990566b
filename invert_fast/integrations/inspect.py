"""inspect_ai: an evaluation of what hidden states give away. Inspect finds it by the entry point of this package:

inspect eval invert_fast/hidden_state_leakage --model mockllm/model -T target=./my-model -T layer=block:5
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import InputError
from .leak import MEASURES, inverter_of, leak, measures, texts_from
from .needs import INSPECT

INSPECT.check()  # it imports this file at its start, hence nothing else that is heavy
from anyio import to_thread  # noqa: E402
from inspect_ai import Task, task  # noqa: E402
from inspect_ai.dataset import MemoryDataset, Sample  # noqa: E402
from inspect_ai.model import ModelOutput, get_model  # noqa: E402
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr  # noqa: E402
from inspect_ai.solver import Generate, Solver, TaskState, solver  # noqa: E402

if TYPE_CHECKING:
    from ..inverter import Inverter

_KEY = "invert_fast"
_one_at_a_time = threading.Lock()  # samples run side by side, and there is one model


@task
def hidden_state_leakage(
    target: str | None = None,
    layer: int | str = -1,
    store_dtype: str = "float32",
    noise: float = 0.0,
    strategy: str = "auto",
    dataset: str | None = None,
) -> Task:
    """Captures a model's hidden states for each prompt, inverts them, and scores what came back.

    target: the model by name, folder or `bundled`; without it the evaluated one, which then must be `hf/…`; layer,
    store_dtype, noise, strategy: of the capture and the attack; dataset: a .jsonl file with a `text` each, or a .txt
    with one a line; without it 36 sentences.
    """
    samples = [Sample(input=text, target=text, id=i) for i, text in enumerate(texts_from(dataset), 1)]
    return Task(
        dataset=MemoryDataset(samples, name=Path(dataset).name if dataset else "sentences"),
        solver=invert_hidden_states(target, layer, store_dtype, noise, strategy),
        scorer=leakage(),
    )


@solver
def invert_hidden_states(
    target: str | None = None,
    layer: int | str = -1,
    store_dtype: str = "float32",
    noise: float = 0.0,
    strategy: str = "auto",
) -> Solver:
    """Puts in place of an answer the text that the states of the sample's prompt give away; settings as of the task."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        def run() -> dict[str, Any]:
            with _one_at_a_time:
                one = leak(
                    _inverter(target, layer), state.input_text, store_dtype=store_dtype, noise=noise, strategy=strategy
                )
            about = {"recovered": one.text, "tokens": one.tokens, "wrong": len(one.wrong)}
            return about | {"layer": str(layer), "store_dtype": store_dtype, "measures": measures(one)}

        found = await to_thread.run_sync(run)
        state.store.set(_KEY, found)
        state.output = ModelOutput.from_content(f"{_KEY}/{target or state.model}", found["recovered"])
        state.completed = True
        return state

    return solve


@scorer(metrics={name: [mean(), stderr()] for name in MEASURES})
def leakage() -> Scorer:
    """`token_accuracy`, `exact_match` and the `certified` share of what `invert_hidden_states` found, each with its
    mean and standard error."""

    async def score(state: TaskState, target: Target) -> Score:
        found = state.store.get(_KEY)
        if found is None:
            raise InputError(
                "there is nothing to score, expected the solver invert_fast/invert_hidden_states before it"
            )
        rest = {key: value for key, value in found.items() if key not in ("recovered", "measures")}
        said = f"{found['tokens'] - found['wrong']} of {found['tokens']} tokens came back right"
        return Score(value=found["measures"], answer=found["recovered"], explanation=said, metadata=rest)

    return score


def _inverter(target: str | None, layer: int | str) -> Inverter:
    if target is not None:
        return inverter_of(target, layer)
    api = get_model().api
    if not hasattr(api, "tokenizer") or not hasattr(getattr(api, "model", None), "get_input_embeddings"):
        raise InputError(
            f"the evaluated model {get_model()} has no weights here, expected hf/…: name the model whose states "
            "leak by `-T target=…`"
        )
    return _inverter_of(api.model, api.tokenizer, layer)


@lru_cache(maxsize=2)
def _inverter_of(model: Any, tokenizer: Any, layer: int | str) -> Inverter:
    from ..inverter import Inverter

    return Inverter(model, tokenizer, layer)
