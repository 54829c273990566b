"""`invert-fast logits search`: the last vector of each text → its short prompt, by search with the model itself."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

from ..logits.recorded import KINDS
from ..logits.vector import VectorRecovery, VectorSearch
from .options import DTYPES, inverter_of, model_options, positive, progress
from .recovering import check_output
from .terminal import say, say_json

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "search",
        help="one vector a prompt → short prompts",
        description="Recover short prompts from a single next-token vector each (the last row of each text in the "
        "file), by search with the model's own forward pass. One JSON line a prompt, written as it is found.",
    )
    model_options(one, layer=False)
    one.add_argument("logits", type=Path, help=".safetensors (from `logits capture`) or .npy")
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="found.jsonl to write")
    one.add_argument("--length", type=positive, metavar="N", help="tokens of each prompt, where known")
    one.add_argument("--max-length", type=positive, default=5, metavar="N", help="otherwise 1 … N (default 5)")
    one.add_argument("--beam", type=positive, default=VectorSearch.beam, metavar="B", help="prompts changed a round")
    one.add_argument("--rounds", type=positive, default=VectorSearch.rounds, metavar="R", help="rounds at most")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of the starts (default 0)")
    one.add_argument("--batch-size", type=positive, default=16, metavar="B", help="prompts at once (default 16)")
    one.add_argument("--resume", action="store_true", help="go on with an output file that exists")
    one.add_argument(
        "--kind", choices=KINDS, help="what the numbers are, if the file is silent (default: told by sums)"
    )
    one.add_argument("--stored-dtype", choices=DTYPES, help="precision they were stored in, if the file is silent")
    one.add_argument("--compute-dtype", choices=DTYPES, help="precision they were computed in, if the file is silent")
    one.add_argument("--json", action="store_true", help="print a summary as JSON")
    one.set_defaults(command=_search)


def _search(args: argparse.Namespace) -> int:
    check_output(args)
    from ..logits.files import open_logits
    from ..storage.recovered import resume

    source = open_logits(args.logits)
    inverter = inverter_of(args, None)
    if args.insist:
        source = replace(source, rows=source.rows.without_model())
    lengths = source.rows.lengths()
    done = resume(args.output, [None] * len(lengths)) if args.output.exists() else set()
    left = [i for i in range(len(lengths)) if i not in done and lengths[i]]
    if len(left) + len(done) < len(lengths):
        log.warning("%d texts have no rows and were left out", len(lengths) - len(left) - len(done))
    settings = VectorSearch(beam=args.beam, rounds=args.rounds, seed=args.seed)
    start, verified, forward = time.perf_counter(), 0, 0
    with (
        args.output.open("a", encoding="utf-8") as out,
        progress(total=len(left), desc="search", unit="prompt") as bar,
    ):
        for at in range(0, len(left), args.batch_size):
            part = left[at : at + args.batch_size]
            vectors = [source.logits(i, args.kind, args.stored_dtype, args.compute_dtype).last() for i in part]
            found = inverter.invert_vector(vectors, args.length, max_length=args.max_length, settings=settings)
            for index, recovery in zip(part, found, strict=True):
                out.write(_line(index, recovery) + "\n")
                verified, forward = verified + recovery.verified, forward + recovery.forward_tokens
            out.flush()
            bar.update(len(part))
    seconds = time.perf_counter() - start
    summary = {
        "prompts": len(left),
        "verified": verified,
        "seconds": round(seconds, 3),
        "seconds_per_prompt": round(seconds / max(1, len(left)), 3),
        "forward_tokens_per_prompt": round(forward / max(1, len(left)), 1),
        "device": str(inverter.decoder.device),
        "dtype": args.dtype,
    }
    if args.json:
        say_json(summary)
    else:
        say(f"{verified} of {len(left)} prompts verified in {seconds:.1f} s → {args.output}")
    return 0 if verified == len(left) else 1


def _line(index: int, recovery: VectorRecovery) -> str:
    """One line of found.jsonl."""
    row = {
        "index": index,
        "token_ids": recovery.token_ids,
        "text": recovery.text,
        "verified": recovery.verified,
        "status": "verified" if recovery.verified else recovery.status.label,
        "residual": float(f"{recovery.residual:.4g}"),
        "runner_up": float(f"{recovery.runner_up:.4g}") if math.isfinite(recovery.runner_up) else None,
        "forward_tokens": recovery.forward_tokens,
        "seconds": round(recovery.seconds, 6),
    }
    if recovery.alternatives:
        row["alternatives"] = recovery.alternatives
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
