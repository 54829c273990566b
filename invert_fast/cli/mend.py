"""`invert-fast mend`: states that were edited → recovered.jsonl, with what was done to them in each line."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TextIO

from ..types import InputError
from .options import (
    COMPUTED,
    STORED,
    inverter_of,
    loading,
    model_options,
    positions,
    progress,
    reading_of,
    reading_options,
    states_arguments,
)
from .terminal import say, say_json

if TYPE_CHECKING:
    from torch import Tensor

    from ..types import Recovery

_SHOWN = 10  # texts of which is printed what was done
EDITS = ("gap", "front", "order", "steering", "mixed")
log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "mend",
        help="edited states (rows missing, shuffled, mixed, steered) → recovered.jsonl",
        description="Undo an edit and recover the texts, one JSON line a text. Certificates are of the states so "
        "mended; `mended` of a line says what was done. What cannot be undone is not certified, and the reason is "
        "printed. `diagnose` names the edit.",
    )
    model_options(one)
    states_arguments(one)
    one.add_argument(
        "--edit",
        choices=EDITS,
        required=True,
        help="gap: rows are missing (NaN or zero rows, those of --missing, or where nothing fits); front: one or two "
        "unknown tokens stood before the first row; order: rows are shuffled; steering: one vector was added to all "
        "rows; mixed: rows of several texts in turns",
    )
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="recovered.jsonl to write")
    one.add_argument(
        "--missing",
        type=positions,
        default=(),
        metavar="T,T",
        help="with --edit gap: positions of a text (of each), from 0, whose rows are not in the file",
    )
    one.add_argument(
        "--direction",
        type=Path,
        metavar="FILE",
        help="with --edit steering: .safetensors or .npy of one vector, where its direction is known and its strength "
        "is not",
    )
    reading_options(one)
    one.add_argument(
        "--states-dtype", choices=STORED, help="precision the states were stored in, if the file is silent"
    )
    one.add_argument("--compute-dtype", choices=COMPUTED, help="precision they were computed in, if the file is silent")
    one.add_argument("--json", action="store_true", help="print a summary as JSON")
    one.set_defaults(command=_mend)


def _mend(args: argparse.Namespace) -> int:
    if args.output.exists():
        raise InputError(f"{args.output} exists, expected a new file: give another --output")
    with loading():
        from ..intake.files import named_layer, open_source

    said = named_layer(args.states)
    layer = args.layer if args.layer is not None else said
    inverter = inverter_of(args, layer, reading=reading_of(args))
    source = open_source(args.states, inverter.decoder.layer, args.tensor)
    source = source.without_model() if args.insist else source
    options = {"states_dtype": args.states_dtype, "compute_dtype": args.compute_dtype}
    options |= {"missing": args.missing} if args.missing else {}
    options |= {"direction": vector_in(args.direction)} if args.direction else {}
    start, found = perf_counter(), []
    lengths = source.lengths()
    with (
        args.output.open("x", encoding="utf-8") as out,
        progress(total=sum(lengths), desc=f"mend {args.edit}", unit="row") as bar,
    ):
        for index, rows in enumerate(lengths):
            for one in inverter.mend(source.states(index, inverter.decoder.layer.name), args.edit, **options):
                _write(out, len(found), index, one)
                found.append(one)
            bar.update(rows)
    _sum_up(args, found, perf_counter() - start)
    return 0 if all(one.certified for one in found) else 1


def vector_in(path: Path) -> Tensor:
    """The one vector of a file."""
    with loading():
        from ..storage.states import contents_of

    arrays = contents_of(path).arrays
    if len(arrays) != 1:
        raise InputError(f"{path} has {len(arrays)} arrays, expected one, a direction of the width of the states")
    (array,) = arrays.values()
    return array.part(...)


def _write(out: TextIO, index: int, of: int, found: Recovery) -> None:
    from ..storage.recovered import recovery_line

    out.write(recovery_line(index, found, of=of) + "\n")
    out.flush()


def _sum_up(args: argparse.Namespace, found: list[Recovery], seconds: float) -> None:
    tokens, certified = sum(len(one.token_ids) for one in found), sum(one.certified for one in found)
    forward = sum(one.cost.forward_tokens for one in found)
    if args.json:
        say_json(
            {
                "edit": args.edit,
                "texts": len(found),
                "tokens": tokens,
                "certified": certified,
                "forward_tokens_per_token": round(forward / max(tokens, 1), 4),
                "seconds": round(seconds, 3),
                "mended": [one.mended.sentence for one in found if one.mended],
            }
        )
        return
    for index, one in enumerate(found[:_SHOWN]):
        sure = f"{int((one.status == 0).sum())} of {len(one.token_ids)} tokens certified"
        say(f"text {index}: {one.mended.sentence if one.mended else 'no rows'} ({sure})")
    if len(found) > _SHOWN:
        say(f"… and {len(found) - _SHOWN} more, each with `mended` in its line")
    say(
        f"{certified} of {len(found)} texts certified, {tokens} tokens in {seconds:.1f} s "
        f"({forward / max(tokens, 1):.4g} forward tokens a token) → {args.output}"
    )
