"""`invert-fast figures`: the figures of 2607.00852 on a model, with what the paper states beside them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.prompts import read_chats, read_prompts
from ..types import InputError
from .options import inverter_of, loading, model_options, positive, progress, special_option, whole
from .report import table
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..figures.data import Figure

_PROMPTS, _TOKENS = 8, 4  # that end in two minutes on the bundled model


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "figures",
        help="the paper's figures on a model, the paper's numbers beside them",
        description="Make the continuous searches that figures 1 to 8 of arXiv 2607.00852 show, on any model, and draw "
        "them: losses without and with stabilisation, exact match against the budget, ranks, the failure detector, "
        "problematic tokens. The folder gets an SVG a figure, index.html with all of them and the paper's numbers, and "
        "data.json. A stopped run goes on where it was; a finished one is only drawn again.",
    )
    model_options(one, default="bundled", states=False)
    one.add_argument("--output", dest="folder", type=Path, required=True, metavar="DIR", help="folder for the figures")
    one.add_argument(
        "--input", type=Path, metavar="FILE", help="prompts.txt or .jsonl (default: the package's own prose)"
    )
    one.add_argument(
        "--prompts", type=positive, default=_PROMPTS, metavar="N", help=f"prompts of each search (default {_PROMPTS})"
    )
    one.add_argument(
        "--tokens", type=positive, default=_TOKENS, metavar="T", help=f"tokens of each prompt (default {_TOKENS})"
    )
    one.add_argument("--seed", type=whole, default=42, metavar="S", help="which prompts are taken (default 42)")
    one.add_argument(
        "--candidates",
        type=positive,
        metavar="C",
        help="tokens tried when a search is over (default: the paper's share of the vocabulary, 2000 of 50,257)",
    )
    one.add_argument(
        "--recovered",
        type=Path,
        metavar="FILE",
        help="draw figures 5 to 8 of this recovered.jsonl (by `invert --strategy continuous --trace`), search nothing",
    )
    one.add_argument("--reference", type=Path, metavar="FILE", help="with --recovered: the prompts that were captured")
    special_option(one, ": as in the capture, with --reference")
    one.add_argument("--json", action="store_true", help="print the comparison as JSON")
    one.set_defaults(command=_figures)


def _figures(args: argparse.Namespace) -> int:
    if args.folder.exists() and not args.folder.is_dir():
        raise InputError(f"{args.folder} is a file, expected a folder: give another --output")
    if args.reference is not None and args.recovered is None:
        raise InputError("--reference came without --recovered, expected both: prompts to be searched for are --input")
    with loading():
        from ..figures.making import HEADER, PAGE, rows_of

    made = _searched(args) if args.recovered is None else _traced(args)
    rows = rows_of(made)
    if args.json:
        say_json([dict(zip(HEADER, row, strict=True)) for row in rows])
    else:
        say(f"{table(HEADER, rows, left=(0, 1, 2, 3))}\n{args.folder / PAGE}: {len(made)} figures")
    return 0


def _searched(args: argparse.Namespace) -> list[Figure]:
    from ..figures.making import make, plan_of

    lines = None if args.input is None else read_prompts(args.input)
    inverter = inverter_of(args, args.layer)
    plan = plan_of(inverter, lines, args.prompts, args.tokens, args.seed, args.candidates)
    about = {"model": args.model, "input": "the package's own prose" if args.input is None else args.input.name}
    begun: list[str] = []
    with progress(total=len(plan.searches()), desc="figures", unit="search") as bar:

        def step(name: str) -> None:
            bar.update(min(1, len(begun)))
            begun.append(name)
            bar.set_description(f"figures, {name}")

        made = make(inverter, plan, args.folder, about, step)
        bar.update()
    return made


def _traced(args: argparse.Namespace) -> list[Figure]:
    from ..figures.making import draw_traced
    from ..figures.runs import spelt
    from ..figures.traced import run_of
    from ..storage.recovered import read_recovered

    rows = read_recovered(args.recovered)
    lines = None if args.reference is None else read_chats(args.reference)
    inverter = inverter_of(args, args.layer)
    truth = None if lines is None else [inverter.encode(line, special=args.special) for line in lines]
    for row in rows:
        inverter.decoder.check_ids(row["token_ids"])
    run = run_of(rows, truth, lambda ids: spelt(inverter, ids), str(args.recovered))
    return draw_traced(run, args.folder, {"model": args.model, "recovered": args.recovered.name})
