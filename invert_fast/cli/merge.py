"""`invert-fast merge`: the outputs of all shards of a run → one recovered.jsonl."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..types import InputError
from .terminal import say, say_json


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "merge",
        help="outputs of shards → one recovered.jsonl",
        description="Join the outputs of `invert --shard i/n`, all n of them, in the order of the texts. Shards that "
        "are missing, there twice, unfinished, changed since, or of other states, models or options are refused by "
        "name. The output is whole or not there.",
    )
    one.add_argument("shards", type=Path, nargs="+", metavar="SHARD", help="outputs of the shards, or a folder of them")
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="recovered.jsonl to write")
    one.add_argument("--json", action="store_true", help="print a summary as JSON")
    one.set_defaults(command=_merge)


def _merge(args: argparse.Namespace) -> int:
    from ..storage.merge import merge
    from ..storage.shards import outputs_in

    if args.output.exists():
        raise InputError(f"{args.output} exists, expected a new file: give another --output")
    outputs = [output for given in args.shards for output in (outputs_in(given) if given.is_dir() else [given])]
    texts, certified = merge(outputs, args.output)
    if args.json:
        say_json({"shards": len(outputs), "prompts": texts, "certified": certified})
    else:
        say(f"{certified} of {texts} texts certified, of {len(outputs)} shards → {args.output}")
    return 0 if certified == texts else 1
