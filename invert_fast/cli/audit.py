"""`invert-fast audit`: how much a model's states leak, by layer, precision and defence, in a folder with a page."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ..storage.prompts import read_chats
from ..strategies import registry
from ..types import InputError
from .options import inverter_of, loading, model_options, positive, progress, shard, special_option, whole
from .report import table
from .terminal import say, say_json

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "audit",
        help="how much a model's states leak, on a page",
        description="Capture the states of prompts, defend and round them, invert them, and compare what comes back "
        "with what went in: in each cell of layer × defence × precision. Writes a folder: index.html (one page that "
        "needs no network), summary.json (a row a cell, with intervals) and results.jsonl (a line a text and cell, the "
        "texts in it). A run that was stopped goes on with --resume. With --join, makes the page of several shards. "
        "Exit status: 1 if a token was certified and wrong.",
    )
    model_options(one, layer=False, required=False)  # --join needs none
    one.add_argument("--input", type=Path, metavar="FILE", help="prompts.txt (one a line) or .jsonl")
    one.add_argument(
        "--layers",
        type=names,
        default=("all",),
        metavar="L,L",
        help="all (default: embeddings, each block, final_norm), or block:0,last,…",
    )
    one.add_argument(
        "--store-dtype",
        type=names,
        default=("fp32",),
        metavar="P,P",
        help="precisions that states are rounded to: fp32 (default), bf16, fp16, fp8_e4m3, fp8_e5m2, int8",
    )
    one.add_argument(
        "--defence",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:STRENGTH",
        help="each is tried beside no defence: gaussian:0.05, laplace:0.05, private:8:4:1e-5, quantise:4, topk:64, "
        "rotation:7, drop:0.1; what the lens reads off defended states is what comes back of them",
    )
    one.add_argument(
        "--strategies",
        type=names,
        default=("auto",),
        metavar="S,S",
        help=f"of undefended states (default auto): {', '.join(registry.names())}",
    )
    one.add_argument("--max-tokens", type=positive, metavar="N", help="cut each text to N tokens")
    one.add_argument("--limit", type=positive, metavar="P", help="only the first P texts")
    special_option(one)
    one.add_argument("--seed", type=whole, default=0, metavar="N", help="of all that is random (default 0)")
    one.add_argument(
        "--measure",
        type=positive,
        default=64,
        metavar="P",
        help="on how many of the first texts the next-token loss is measured (default 64)",
    )
    one.add_argument("--output", dest="folder", type=Path, required=True, metavar="FOLDER", help="folder to write")
    one.add_argument("--resume", action="store_true", help="go on with a folder that was begun")
    one.add_argument("--shard", type=shard, metavar="i/n", help="only the i-th of n parts of the texts; then --join")
    one.add_argument(
        "--join",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="folders of all shards: put together, with one page (needs neither --model nor --input)",
    )
    one.add_argument("--json", action="store_true", help="print the summary as JSON")
    one.set_defaults(command=_audit)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"'{text}' is not names with commas between them")
    return found


def _audit(args: argparse.Namespace) -> int:
    found = _joined(args) if args.join else _run(args)
    wrong = sum(row["certified_wrong"] for row in found["cells"])
    if wrong:
        log.warning("%d tokens were certified and are wrong: please report it, with %s", wrong, args.folder)
    if args.json:
        say_json(found)
    else:
        say(_said(found))
        say(f"\n→ {args.folder / 'index.html'}")
    return 1 if wrong else 0


def _joined(args: argparse.Namespace) -> dict[str, Any]:
    if args.model or args.input or args.shard or args.resume:
        raise InputError("--join puts together what is there: leave out --model, --input, --shard and --resume")
    from ..audit import join

    return join(args.join, args.folder)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if not (args.model and args.input):
        missing = "--input" if args.model else "--model"
        raise InputError(
            f"{missing} is missing, expected --model and --input (or --join and folders of shards): give it"
        )
    texts = read_chats(args.input, args.limit)
    with loading():
        from ..audit import Settings, audit

        settings = Settings(
            args.layers,
            args.store_dtype,
            tuple(args.defence),
            args.strategies,
            args.max_tokens,
            args.special,
            args.seed,
            args.measure,
        )
    inverter = inverter_of(args, "-1")
    with progress(desc="audit", unit="token") as bar:

        def planned(tokens: int) -> None:
            bar.reset(tokens)

        def tick(cell: str, tokens: int) -> None:
            bar.set_postfix_str(cell, refresh=False)
            bar.update(tokens)

        return audit(
            *(inverter, texts, args.folder, settings),
            resume=args.resume,
            shard=args.shard,
            name=str(args.model),
            planned=planned,
            tick=tick,
        )


def _said(found: dict[str, Any]) -> str:
    """The cells, lined up."""

    def percent(figure: dict[str, float]) -> str:
        return f"{100 * figure['value']:.1f} %"

    head = ["cell", "exact", "tokens right", "certified", "wrong and certified", "forward/token", "loss added"]
    rows = [
        [
            " ".join((row["layer"], row["precision"], row["defence"], row["strategy"])),
            percent(row["exact_match"]),
            percent(row["token_accuracy"]),
            percent(row["certified"]),
            str(row["certified_wrong"]),
            f"{row['forward_tokens_per_token']['value']:.2f}",
            "–" if row["loss_added"] is None else f"{round(row['loss_added']['value'], 3) + 0.0:+.3f}",
        ]
        for row in found["cells"]
    ]
    return table(head, rows)
