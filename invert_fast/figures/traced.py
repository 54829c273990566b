"""Traces that inversions left in a file, as one search that figures are drawn from.

What the file has not, the proxies themselves, nothing can be drawn of: ranks are those of committed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..types import InputError
from .runs import Run

Spell = Callable[[list[int]], list[str]]


def run_of(rows: Sequence[dict[str, Any]], truth: Sequence[list[int]] | None, spelt: Spell, source: str) -> Run:
    """The rows of a recovered.jsonl that have a trace, as a `Run`. truth: ids of the texts by `index`, each as long as
    what was found or longer; None: a text is taken to be right up to where its discrete loss says otherwise. spelt: ids
    → the text of each; source: what errors call the file. InputError where no row has a trace, or one is none."""
    traced = [row for row in rows if "trace" in row]
    if not traced:
        raise InputError(
            f"{source}: none of {len(rows)} texts has a trace, expected some: make it with `invert-fast invert "
            "--strategy continuous --trace`"
        )
    prompts, stride = [], _stride(traced)
    for row in traced:
        index, found = row["index"], row["token_ids"]
        ids = found if truth is None else _true(truth, index, len(found), source)
        try:
            prompts.append(_prompt(row["trace"], ids, found, truth is not None, stride, spelt))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(
                f"{source}: the trace of text {index} is none ({type(error).__name__}: {error}), expected what `invert "
                "--trace` writes"
            ) from error
    most = max((steps for prompt in prompts for steps in prompt["steps"]), default=1)
    right = sum(prompt["wrong"] is None for prompt in prompts) / len(prompts)
    settings = {"steps": most, "candidates": None, "stride": stride}
    return {"settings": settings, "exact": right, "similarity": None, "seconds": None, "prompts": prompts}


def _true(truth: Sequence[list[int]], index: int, length: int, source: str) -> list[int]:
    if not 0 <= index < len(truth) or len(truth[index]) < length:
        raise InputError(
            f"{source}: text {index} of {length} tokens is none of the {len(truth)} references, expected the prompts "
            "that were captured: check their order, and --no-special"
        )
    return truth[index][:length]


def _stride(rows: Sequence[dict[str, Any]]) -> int:
    """Steps between two proxies that were kept: of the first search that kept three."""
    for row in rows:
        trace = row["trace"]
        for steps in trace.get("rank_step", ()) if isinstance(trace, dict) else ():
            if isinstance(steps, list) and len(steps) > 2 and isinstance(steps[1], int) and steps[1] > 0:
                return steps[1]
    return 1


def _prompt(
    trace: dict[str, Any], ids: list[int], found: list[int], known: bool, stride: int, spelt: Spell
) -> dict[str, Any]:
    detected = trace["first_failure"]
    wrong = next((t for t, (a, b) in enumerate(zip(ids, found, strict=True)) if a != b), None) if known else detected
    judged = len(ids) if wrong is None else wrong + 1
    losses, ranks = trace["loss"][:judged], trace["rank"][:judged]
    if not len(losses) == len(ranks) == judged or len(trace["cumulative_loss"]) != len(ids):
        raise ValueError(f"{len(losses)} losses and {len(ranks)} ranks of {judged} positions")
    return {
        "ids": ids,
        "found": found,
        "tokens": spelt(ids),
        "wrong": wrong,
        "detected": detected,
        "cumulative": [None if v is None else float(v) for v in trace["cumulative_loss"]],
        "steps": [len(loss or ()) for loss in losses],
        "loss": [[float(v) for v in (*loss[::stride], loss[-1])] if loss else [] for loss in losses],
        # the committed token's: where that is another, nothing is known of the true one's
        "rank": [[int(v) for v in rank] if rank and t != wrong else [] for t, rank in enumerate(ranks)],
    }
