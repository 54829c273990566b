"""`invert-fast score`: recovered.jsonl against the true prompts."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..reports.score import score
from ..storage.prompts import read_chats
from ..types import InputError
from .options import counted, positive, progress, special_option
from .report import table
from .terminal import say, say_json

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "score",
        help="recovered.jsonl against the true prompts",
        description="Compare recovered texts with their references. With --model by token, without by text only.",
    )
    one.add_argument("recovered", type=Path, help="recovered.jsonl")
    one.add_argument("--reference", type=Path, required=True, metavar="FILE", help="the prompts that were captured")
    one.add_argument("--model", metavar="M", help="the model of the capture: its tokenizer cuts the references")
    one.add_argument("--max-tokens", type=positive, metavar="N", help="as in the capture (needs --model)")
    special_option(one, ": as in the capture (needs --model)")
    one.add_argument("--json", action="store_true", help="print the scores as JSON")
    one.set_defaults(command=_score)


def _score(args: argparse.Namespace) -> int:
    if args.model is None and (args.max_tokens or not args.special):
        raise InputError("--max-tokens and --no-special cut by tokens, which needs a tokenizer: give --model as well")
    from ..storage.recovered import read_recovered

    rows = {row["index"]: row for row in read_recovered(args.recovered)}
    texts = read_chats(args.reference)
    beyond = [i for i in rows if not 0 <= i < len(texts)]
    if beyond:
        raise InputError(
            f"{args.recovered} has text {max(beyond)}, {args.reference} has {len(texts)}: give the prompts "
            "that were captured"
        )
    references = _references(args, [texts[index] for index in sorted(rows)])
    with progress(total=len(rows), desc="score", unit="text") as bar:
        result = score(counted((rows[i] for i in sorted(rows)), bar), references)
    missing = max(rows, default=-1) + 1 - len(rows)
    if missing:
        log.warning(
            "%d texts before the last one found are missing and were not scored: was the run finished?", missing
        )
    if args.json:
        figures = {name: getattr(result, name) for name in ("prompts", "exact_match", "token_accuracy", "similarity")}
        if result.posterior is not None:
            figures |= {"posterior": result.posterior, "calibration_error": result.calibration_error}
        say_json({key: round(v, 6) if isinstance(v, float) else v for key, v in figures.items()})
    else:
        accuracy = "–" if result.token_accuracy is None else f"{result.token_accuracy:.4f}"
        columns = ["prompts", "exact match", "token accuracy", "similarity"]
        row = [str(result.prompts), f"{result.exact_match:.4f}", accuracy, f"{result.similarity:.4f}"]
        if result.posterior is not None and result.calibration_error is not None:
            columns += ["stated accuracy", "calibration error"]
            row += [f"{result.posterior:.4f}", f"{result.calibration_error:.4f}"]
        say(table(columns, [row]))
    return 0


def _references(args: argparse.Namespace, texts: list) -> list[tuple[list[int] | None, str]]:
    """What was captured of each text: its token ids and their text; without a model the text alone."""
    if not args.model:
        if any(not isinstance(text, str) for text in texts):
            raise InputError(f"{args.reference} has chats, which a model's tokenizer writes, expected --model: give it")
        return [(None, text) for text in texts]
    from ..inverter import Inverter

    inverter = Inverter.from_pretrained(args.model, device="cpu")
    ids = [inverter.encode(text, args.max_tokens, args.special) for text in texts]
    return [(row, inverter.decoder.decode(row) or "") for row in ids]
