"""`invert-fast explain`: why each token of a text comes back from its states, or does not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage.prompts import read_chats
from ..storage.visible import visible
from ..types import InputError
from .options import STORED, inverter_of, loading, model_options, positive, progress, special_option
from .report import cut, table
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..explain import Explanation

_WIDEST = {1: 20, 2: 16, 9: 44}  # columns of the terminal that a token, a draft and the nearest others take at most
_LEFT = (1, 2, 9, 10)


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "explain",
        help="why each token of a text comes back, or does not",
        description="Capture a text's states and show, token by token: what the lens reads off them, where the token "
        "stands in the lens's order and in the model's own, how near its state comes and what is tolerated, the tokens "
        "that come nearest to it, and what certificate it gets and why. Exit status: 0 all certified, 1 some not.",
    )
    model_options(one, default="bundled", states=False)
    one.add_argument("prompt", nargs="?", metavar="TEXT", help="the text (or --input)")
    one.add_argument("--input", type=Path, metavar="FILE", help="prompts.txt (one a line) or .jsonl, instead of TEXT")
    one.add_argument("--limit", type=positive, metavar="P", help="only the first P texts of --input")
    one.add_argument("--max-tokens", type=positive, metavar="N", help="cut each text to N tokens")
    one.add_argument(
        "--store-dtype", choices=STORED, default="float32", help="precision the states are rounded to (default float32)"
    )
    one.add_argument(
        "--near", type=positive, default=4, metavar="N", help="other tokens tried at each position (default 4)"
    )
    special_option(one)
    one.add_argument("--json", action="store_true", help="print a line of JSON a token")
    one.add_argument("--html", dest="output", type=Path, metavar="FILE", help="write a page of its own as well")
    one.add_argument("--overwrite", action="store_true", help="replace an existing page")
    one.set_defaults(command=_explain)


def _explain(args: argparse.Namespace) -> int:
    if (args.prompt is None) == (args.input is None):
        given = "neither" if args.prompt is None else "both"
        raise InputError(f"{given} of TEXT and --input came, expected one: invert-fast explain 'some text'")
    if args.output is not None and args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists, expected a new file: give another --html, or --overwrite")
    texts = [args.prompt] if args.input is None else read_chats(args.input, args.limit)
    inverter = inverter_of(args, args.layer)
    with loading():
        from ..explain import explain
        from ..explain.page import whole_page
        from ..storage.atomic import write_whole

    options: dict[str, Any] = {"max_tokens": args.max_tokens, "special": args.special}
    found: list[Explanation] = []
    with progress(total=len(texts), desc="explain", unit="text", leave=False) as bar:
        for number, text in enumerate(texts):
            one = explain(inverter, text, store_dtype=args.store_dtype, near=args.near, **options)
            bar.clear()
            if args.json:
                for row in one:
                    say_json({"index": number, **row.as_json()})
            else:
                say(show(one) if len(texts) == 1 else f"text {number}\n{show(one)}\n")
            bar.update()
            found.append(one)
    if args.output is not None:
        write_whole(args.output, whole_page(f"{args.model}, {len(found)} explained", found).encode())
    return 0 if all(one.certified for one in found) else 1


def show(explanation: Explanation) -> str:
    """The table, the reasons that its numbers stand for, and what the columns are."""
    from ..explain.page import HEADER, LEGEND, cells, counted_reasons, reasons_of, setup_of

    why = reasons_of(explanation)
    rows = [[cut(visible(cell), _WIDEST.get(i, 60)) for i, cell in enumerate(cells(one, why))] for one in explanation]
    share = f"{sum(one.status == 0 and one.found_id == one.token_id for one in explanation)} of {len(rows)} certified"
    body = [table(HEADER, rows, _LEFT), *counted_reasons(explanation), ""] if rows else []
    return "\n".join([f"{setup_of(explanation)}: {share}", *body, *([LEGEND] if rows else [])])
