"""`invert-fast invert`: states file → recovered.jsonl. What recovers from anything else goes through the same run."""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..lens.names import LENSES
from ..storage.joined import Joined, Source, parts_of
from ..strategies import registry
from ..types import InputError, Status, coarsest
from .options import (
    COMPUTED,
    STORED,
    gib,
    inverter_of,
    loading,
    model_options,
    positive,
    progress,
    reading_of,
    reading_options,
    shard,
    states_arguments,
)
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..engine.protocol import Strategy
    from ..engine.tolerances import Tolerances
    from ..inverter import Inverter
    from ..types import States

PRESETS = ("fast", "baseline", "high-accuracy")
log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "invert",
        help="states file → recovered.jsonl",
        description="Recover the texts of a states file, one JSON line a text, written as it is found.",
    )
    model_options(one)
    states_arguments(one)
    inversion_options(one)
    reading_options(one)
    one.add_argument(
        "--states-dtype", choices=STORED, help="precision the states were stored in, if the file is silent"
    )
    one.add_argument("--compute-dtype", choices=COMPUTED, help="precision they were computed in, if the file is silent")
    one.set_defaults(command=_invert)


def inversion_options(parser: argparse.ArgumentParser) -> None:
    """How texts are recovered and written, whatever they are recovered from."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="recovered.jsonl to write")
    search_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an output file that exists")
    parser.add_argument(
        "--shard", type=shard, default=(1, 1), metavar="i/n", help="only the i-th of n parts of the texts"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")


def search_options(parser: argparse.ArgumentParser) -> None:
    """How texts are recovered, and within which memory."""
    parser.add_argument(
        "--strategy",
        choices=registry.names(),
        default="auto",
        help="how candidates are found (default auto: draft, verify, repair; a few gradient steps; then all tokens)",
    )
    parser.add_argument(
        "--lens",
        choices=LENSES.names(),
        help="what auto and speculative draft with (default auto: a learned one where there is one that is better)",
    )
    parser.add_argument("--preset", choices=PRESETS, help="operating point of --strategy continuous (default baseline)")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="with --strategy continuous: write loss curves, rank trajectories and cumulative discrete loss as well",
    )
    parser.add_argument("--batch-size", type=positive, metavar="B", help="texts at once (default: what fits in memory)")
    parser.add_argument(
        "--max-memory",
        type=gib,
        metavar="GiB",
        help="memory to stay within, the model included (default: half of what is free beside it)",
    )


def strategy_of(args: argparse.Namespace) -> str | Strategy:
    """The strategy that the options name."""
    if args.strategy == "continuous":
        from ..strategies.continuous import PRESETS as CONTINUOUS

        return CONTINUOUS[args.preset or "baseline"](trace=args.trace)
    if args.preset or args.trace:
        option = "--preset" if args.preset else "--trace"
        raise InputError(f"{option} is an option of the continuous search: add --strategy continuous, or leave it out")
    if args.lens is None:
        return args.strategy
    if args.strategy not in ("auto", "speculative"):
        raise InputError(f"--lens is an option of what drafts: add --strategy auto or speculative, not {args.strategy}")
    from ..strategies.auto import auto
    from ..strategies.speculative import Speculative

    return auto(args.lens) if args.strategy == "auto" else Speculative(lens=args.lens)


def check_output(args: argparse.Namespace) -> None:
    """Refuse to write over what was found before."""
    if args.output.exists() and not args.resume:
        raise InputError(
            f"{args.output} exists, expected a new file: give another --output, or --resume to go on with it"
        )


def _invert(args: argparse.Namespace) -> int:
    check_output(args)
    strategy_of(args)  # before any work
    with loading():
        from ..intake.files import named_layer, open_source

    told = args.layer if args.layer is not None else named_layer(args.states)
    inverter = inverter_of(args, told, reading=reading_of(args))
    layer = inverter.decoder.layer
    source = open_source(args.states, layer, args.tensor)
    if args.insist:
        source = source.without_model()
    _check_heads(inverter, source)  # before anything is written
    lengths = source.lengths()
    inverter.check_lengths(lengths)
    source.check_finite()
    done = done_before(args.output, lengths)
    start = time.perf_counter()
    stored, computed = coarsest(_first(part, layer.name) for _, part in parts_of(source))
    stored, computed = args.states_dtype or stored, args.compute_dtype or computed
    tolerances = inverter.calibrate(stored, computed)
    log.info("%s states, %s", stored, tolerances.describe())
    status = recover(args, inverter, source, tolerances, done, start)
    if status:
        log.warning(
            "if the model is the right one: `invert-fast diagnose --model %s %s` tries what may have happened to the "
            "states, and names the option that undoes it",
            args.model,
            args.states,
        )
    return status


def _check_heads(inverter: Inverter, source: Source) -> None:
    """Width, layer and model of every part; InputError by its name."""
    for name, part in parts_of(source):
        try:
            inverter.checked(0, part.head(inverter.decoder.layer.name))
        except InputError as error:
            raise InputError(f"{name}: {error}" if name else str(error)) from error


def _first(part: Source, layer: str) -> States:
    """The first text that has rows: it stands for the precision of its file."""
    filled = next((i for i, rows in enumerate(part.lengths()) if rows), None)
    return part.head(layer) if filled is None else part.states(filled, layer)


def done_before(output: Path, lengths: list[int]) -> set[int]:
    """Texts that the output has already; InputError if it is not of texts of these lengths."""
    from ..storage.recovered import resume

    return resume(output, lengths) if output.exists() else set()


def todo(args: argparse.Namespace, lengths: list[int], done: set[int]) -> list[int]:
    """Texts of this shard that are not done, longest first: like lengths share a pass."""
    part, parts = args.shard
    return sorted(
        (i for i in range(len(lengths)) if i % parts == part - 1 and i not in done), key=lambda i: -lengths[i]
    )


def recover(
    args: argparse.Namespace,
    inverter: Inverter,
    source: Source,
    tolerances: Tolerances,
    done: set[int],
    start: float,
) -> int:
    """Recover what is not `done`, a line a text as it is found, and sum up; returns the exit status.

    start: `time.perf_counter()` when the work began.
    """
    from ..storage.recovered import recovery_line

    layer, lengths = inverter.decoder.layer.name, source.lengths()
    part = source.part if isinstance(source, Joined) else lambda _: 0
    left = sorted(todo(args, lengths, done), key=part)  # file by file
    names, waiting, sure = [name for name, _ in parts_of(source)], Counter(map(part, left)), Counter()
    found = inverter.invert_iter(
        ((i, source.states(i, layer)) for i in left),
        strategy_of(args),
        lengths=[lengths[i] for i in left],
        batch_size=args.batch_size,
        max_memory=args.max_memory,
        tolerances=tolerances,
    )
    tokens, forward, certified, worst = 0, 0, 0, {}
    with (
        args.output.open("a", encoding="utf-8") as out,
        progress(total=sum(lengths[i] for i in left), desc="invert", unit="token") as bar,
    ):
        for index, recovery in found:
            which = part(index)
            out.write(recovery_line(index, recovery, names[which]) + "\n")
            out.flush()
            tokens, forward = tokens + lengths[index], forward + recovery.cost.forward_tokens
            certified += recovery.certified
            if (at := recovery.first_failure) is not None:
                worst.setdefault(Status(int(recovery.status[at])), (index, at))
            bar.update(lengths[index])
            waiting[which] -= 1
            sure[which] += recovery.certified
            if names[which] and not waiting[which]:
                rest = sum(map(bool, waiting.values()))
                log.info("%s: %d texts certified; %d of %d to go", names[which], sure[which], rest, len(names))
    seconds = time.perf_counter() - start
    for status, (index, at) in sorted(worst.items()):
        log.warning("text %d, position %d is %s: %s", index, at, status.label, status.sentence)
    summary = {
        "prompts": len(left),
        "tokens": tokens,
        "certified": certified,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "forward_tokens_per_token": round(forward / max(tokens, 1), 4),
        "strategy": args.strategy,
        "device": str(inverter.decoder.device),
        "dtype": args.dtype,
    }
    if args.json:
        say_json(summary)
    else:
        already = f" ({len(done)} were there already)" if done else ""
        say(
            f"{certified} of {len(left)} texts certified{already}, {tokens} tokens in {seconds:.1f} s "
            f"({summary['tokens_per_second']:,} tokens/s, {summary['forward_tokens_per_token']} forward tokens a "
            f"token) → {args.output}"
        )
    return 0 if certified == len(left) else 1
