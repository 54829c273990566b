"""`invert-fast diagnose`: why the states of a file do not certify, and the option of `invert` with which they do."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from .options import inverter_of, loading, model_options, states_arguments
from .report import table
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..diagnose.report import Diagnosis


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "diagnose",
        help="why states do not certify, and the option with which they do",
        description="Look at the first rows of the longest text of a states file: try another layer, shifted "
        "positions, a BOS, centred, scaled or normalised rows and other precisions, cheapest first, then edits (rows "
        "missing, shuffled, mixed or steered), and name the one under which the rows certify. Exit status: 0 where "
        "there is one, 1 where there is none.",
    )
    model_options(one)
    states_arguments(one)
    one.add_argument("--json", action="store_true", help="print the findings as JSON")
    one.set_defaults(command=_diagnose)


def _diagnose(args: argparse.Namespace) -> int:
    with loading():
        from ..intake.files import named_layer, open_source

    said = named_layer(args.states)
    inverter = inverter_of(args, args.layer if args.layer is not None else said)
    source = open_source(args.states, inverter.decoder.layer, args.tensor)
    lengths = source.lengths()
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    states = [] if longest is None else [source.states(longest, inverter.decoder.layer.name)]
    found = replace(inverter.diagnose(states), labelled=said is not None)
    if args.json:
        say_json(as_json(found))
    else:
        say(show(found, args))
    return 0 if found.explained else 1


def show(found: Diagnosis, args: argparse.Namespace) -> str:
    """The verdict, the command that follows from it, the table of what was compared, and what else showed."""
    from ..diagnose.report import HEADER

    parts = [found.verdict]
    if found.options:
        states = f"{args.states} --tensor '{args.tensor}'" if args.tensor else args.states
        command = f"invert-fast {found.command} --model {args.model}"
        parts.append(f"    {command} {states} --output recovered.jsonl {found.options}")
    if found.tried:
        parts.append(f"\n{table(HEADER, found.table())}\n")
    return "\n".join([*parts, *found.notes]).rstrip()


def as_json(found: Diagnosis) -> dict:
    """The same for programs: `tried` has kind, option, residual and certified share of each."""
    from ..diagnose.hypotheses import FAMILIES

    tried = [
        {
            "supposed": FAMILIES[kind],
            "options": one.hypothesis.options(found.layer, found.labelled),
            "residual": one.residual,
            "certified": one.certified,
        }
        for kind, one in sorted(found.tried.items())
    ]
    return {
        "explained": found.explained,
        "verdict": found.verdict,
        "command": found.command,
        "options": found.options,
        "certified": found.certified,
        "rows": found.rows,
        "text": None if found.recovery is None else found.recovery.text,
        "notes": list(found.notes),
        "tried": tried,
    }
