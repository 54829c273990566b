"""`invert-fast fit`: fit a lens to a model and layer, and say how well it drafts."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..lens.settings import Fit
from ..storage.prompts import read_prompts
from ..types import InputError
from .options import DTYPES, inverter_of, model_options, number, positive
from .report import table
from .terminal import say, say_json


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "fit",
        help="train a lens: better first drafts, fewer repairs",
        description="Fit a lens to one layer of a model, on text that the model writes itself. `invert` then drafts "
        "with it. It is kept in the cache folder (INVERT_FAST_CACHE); a fit that was interrupted goes on where it was.",
    )
    model_options(one)
    one.add_argument(
        "--lens",
        choices=("auto", "learned", "linear"),
        default="auto",
        help="learned (auto, the default): a small transformer, minutes; linear: closed form, seconds, made on first "
        "use anyway, and made better for --minutes",
    )
    one.add_argument(
        "--minutes",
        type=_minutes,
        metavar="m",
        help="for at most so long (default of a large vocabulary 15; of a small one sampling comes before)",
    )
    one.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="optimisation steps at most (default 1500; of a large vocabulary what there is time for)",
    )
    one.add_argument(
        "--text", type=Path, metavar="FILE", help="prompts.txt or .jsonl like those to recover: half of the training"
    )
    one.add_argument(
        "--states-dtype",
        choices=("any", *DTYPES),
        default="any",
        help="precision the states will be stored in (default any)",
    )
    one.add_argument(
        "--noise", type=_noise, default=0.0, metavar="σ", help="Gaussian noise expected on the states, over their RMS"
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="default 0; equal seeds give equal lenses")
    one.add_argument("--output", type=Path, metavar="FILE", help="also write the learned lens to this file")
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    one.set_defaults(command=_fit)


def _minutes(text: str) -> float:
    return number(text, "a number of minutes above 0", lambda value: 0 < value < float("inf"))


def _noise(text: str) -> float:
    return number(text, "a number from 0 to 10, such as 0.05", lambda value: 0 <= value <= 10)


def _fit(args: argparse.Namespace) -> int:
    if args.lens == "linear" and (args.steps or args.noise or args.output):
        raise InputError("--steps, --noise and --output are of the learned lens: leave them out")
    texts = read_prompts(args.text, None) if args.text else []
    inverter = inverter_of(args, args.layer)
    settings = Fit(
        steps=args.steps, minutes=args.minutes, states_dtype=args.states_dtype, noise=args.noise, seed=args.seed
    )
    report = inverter.fit(args.lens, settings, text=texts, output=args.output)
    if args.json:
        say_json(asdict(report))
        return 0
    columns = {
        "before" if report.deeper else "linear top-1": report.linear,
        "top-1": report.top1,
        "top-16": report.top16,
    }
    columns = {title: shares for title, shares in columns.items() if shares}
    rows = [[name, *(f"{shares[name]:.4f}" for shares in columns.values())] for name in report.top1]
    say(table(["held-out tokens", *columns], rows))
    kept = f"kept in {report.path}" if report.path else "kept nowhere: INVERT_FAST_CACHE is off, or cannot be written"
    if not report.better:
        kept = "no better than the lens before, which stays; what was learned waits for the next fit"
    say(f"{report.steps} {'rounds of texts' if report.deeper else 'steps'}, {report.seconds:.0f} s; {kept}")
    return 0
