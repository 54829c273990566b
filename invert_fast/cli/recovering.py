"""What the commands that recover texts have in common: which texts are left, what is written, and the summary."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..lens.names import LENSES
from ..strategies import registry
from ..types import InputError
from .options import gib, positive, progress, shard
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..distributed.job import About, Found
    from ..engine.protocol import Strategy
    from ..storage.shards import Shard

PRESETS = ("fast", "baseline", "high-accuracy")
log = logging.getLogger("invert_fast")


def inversion_options(parser: argparse.ArgumentParser) -> None:
    """How texts are recovered and written, whatever they are recovered from."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="recovered.jsonl to write")
    search_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an output file that exists")
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="i/n",
        help="only the i-th of n parts of the texts; a note beside the output lets `merge` put them together",
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


@dataclass(frozen=True)
class Left:
    """The texts that are to be recovered, file by file and longest first: like lengths share a pass. done: those that
    the output has already; shard: None where it is to have all."""

    texts: list[int]
    done: set[int]
    shard: Shard | None


def left_of(args: argparse.Namespace, about: About) -> Left:
    """What the options leave to be done; InputError for an output that is of something else. Writes nothing."""
    from ..storage.recovered import resume
    from ..storage.shards import Shard, check_begun

    part, parts = args.shard or (1, 1)
    lengths, sharded = about.lengths, None
    if args.shard:
        sharded = Shard(part, parts, len(lengths), about.settings)
        check_begun(args.output, sharded)
    done = resume(args.output, lengths) if args.output.exists() else set()
    own = [i for i in range(part - 1, len(lengths), parts) if i not in done]
    return Left(sorted(own, key=lambda i: (about.part(i), -lengths[i])), done, sharded)


def recover(
    args: argparse.Namespace,
    about: About,
    left: Left,
    found: Iterable[Found],
    start: float,
    lost: Mapping[int, str] = MappingProxyType({}),
) -> int:
    """Write what is `found`, a line a text, and sum up; returns the exit status.

    start: `perf_counter()` when the work began; lost: texts that were given up by the end, and why.
    """
    from ..storage import ordered, shards

    waiting, sure = Counter(map(about.part, left.texts)), Counter()
    tokens, forward, certified, worst = 0, 0, 0, {}
    with (
        args.output.open("a", encoding="utf-8") as out,
        progress(total=sum(about.lengths[i] for i in left.texts), desc="invert", unit="token") as bar,
    ):
        if left.shard:
            shards.begin(args.output, left.shard)
        for each in found:
            which = about.part(each.index)
            out.write(each.line + "\n")
            out.flush()
            tokens, forward = tokens + about.lengths[each.index], forward + each.forward_tokens
            certified += each.certified
            if each.failure is not None:
                status, at = each.failure
                worst.setdefault(status, (each.index, at))
            bar.update(about.lengths[each.index])
            waiting[which] -= 1
            sure[which] += each.certified
            if about.names[which] and not waiting[which]:
                rest = sum(map(bool, waiting.values()))
                name, files = about.names[which], len(about.names)
                log.info("%s: %d texts certified; %d of %d to go", name, sure[which], rest, files)
    seconds = perf_counter() - start
    for status, (index, at) in sorted(worst.items()):
        log.warning("text %d, position %d is %s: %s", index, at, status.label, status.sentence)
    if lost:
        index, why = next(iter(sorted(lost.items())))
        log.warning("%d texts were given up, text %d among them: %s; --resume tries them again", len(lost), index, why)
    else:
        ordered.put_in_order(args.output)
        if left.shard:
            shards.finish(args.output, left.shard)
    _sum_up(args, about, left, tokens, forward, certified, seconds)
    return 0 if certified == len(left.texts) else 1


def _sum_up(
    args: argparse.Namespace, about: About, left: Left, tokens: int, forward: int, certified: int, seconds: float
) -> None:
    summary = {
        "prompts": len(left.texts),
        "tokens": tokens,
        "certified": certified,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "forward_tokens_per_token": round(forward / max(tokens, 1), 4),
        "strategy": args.strategy,
        "device": about.device,
        "dtype": args.dtype,
    }
    if args.json:
        say_json(summary)
        return
    already = f" ({len(left.done)} were there already)" if left.done else ""
    say(
        f"{certified} of {len(left.texts)} texts certified{already}, {tokens} tokens in {seconds:.1f} s "
        f"({summary['tokens_per_second']:,} tokens/s, {summary['forward_tokens_per_token']} forward tokens a "
        f"token) → {args.output}"
    )
