"""`invert-fast serve`: one model over HTTP, states in and texts out (docs/serve.md)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import (
    COMPUTED,
    DTYPES,
    inverter_of,
    loading,
    model_options,
    number,
    positive,
    reading_of,
    reading_options,
    whole,
)
from .recovering import search_options, strategy_of

if TYPE_CHECKING:
    from ..serve.limits import Limits


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "serve",
        help="answer over HTTP: states in, texts out",
        description="Load one model and answer requests over HTTP: POST /v1/invert takes safetensors and streams a "
        "JSON line a text. Needs the extra: pip install 'invert_fast[serve]'. Ends on SIGTERM or Ctrl-C, with grace.",
    )
    model_options(one)
    search_options(one)
    reading_options(one)
    one.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default 127.0.0.1)")
    one.add_argument("--port", type=port, default=8017, help="0: any that is free (default 8017)")
    one.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="tokens, one a line, of which requests have to bring one (default: the variable INVERT_FAST_TOKEN); "
        "needed for an address that other machines reach",
    )
    one.add_argument(
        "--states-dtype",
        choices=DTYPES,
        nargs="+",
        default=["float32", "bfloat16"],
        help="stored precisions to be ready for at once (default float32 bfloat16); others when they first come",
    )
    one.add_argument(
        "--compute-dtype",
        choices=COMPUTED,
        nargs="+",
        default=None,
        help="precisions of the passes that made them (default: the stored one, and float32)",
    )
    _limits(one)
    one.set_defaults(command=_serve)


def _limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-body", type=positive, default=64, metavar="MiB", help="of one request (default 64)")
    parser.add_argument(
        "--max-bodies", type=positive, default=256, metavar="MiB", help="of all requests at once (default 256)"
    )
    parser.add_argument("--max-texts", type=positive, default=1024, metavar="N", help="of one request (default 1024)")
    parser.add_argument(
        "--max-requests",
        type=positive,
        default=128,
        metavar="N",
        help="taken at once, waiting or worked on; more are told to come again (default 128)",
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=4096, metavar="N", help="worked on side by side (default 4096)"
    )
    for name, seconds, what in (
        ("--upload-timeout", 60, "that a body may take to arrive"),
        ("--timeout", 600, "from there to the last text of a request"),
        ("--grace", 30, "for what runs when the server is told to stop"),
    ):
        parser.add_argument(
            name, type=_seconds, default=float(seconds), metavar="S", help=f"seconds {what} (default {seconds})"
        )


def port(text: str) -> int:
    value = whole(text)
    if value > 65_535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port, 0 to 65535")
    return value


def _seconds(text: str) -> float:
    return number(text, "a number of seconds, 0 or more", lambda value: 0 <= value < float("inf"))


def limits_of(args: argparse.Namespace) -> Limits:
    from ..serve.limits import MIB, Limits

    return Limits(
        body=args.max_body * MIB,
        held=args.max_bodies * MIB,
        texts=args.max_texts,
        requests=args.max_requests,
        tokens=args.max_tokens,
        upload=args.upload_timeout,
        timeout=args.timeout,
        grace=args.grace,
    )


def precisions_of(args: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The pairs of stored and computed precision to be ready for."""
    return tuple(
        dict.fromkeys(
            (stored, computed)
            for stored in args.states_dtype
            for computed in args.compute_dtype or dict.fromkeys((stored, "float32"))
        )
    )


def _serve(args: argparse.Namespace) -> int:
    from ..serve.security import check_bind, read_tokens

    strategy, limits, tokens = strategy_of(args), limits_of(args), read_tokens(args.token_file)
    check_bind(args.host, tokens)
    with loading():
        from ..serve.server import Server  # says what is not installed, before a model is loaded
    inverter = inverter_of(args, args.layer, reading=reading_of(args))
    server = Server(
        inverter,
        args.host,
        args.port,
        tokens=tokens,
        limits=limits,
        insist=args.insist,
        strategy=strategy,
        batch_size=args.batch_size,
        max_memory=args.max_memory,
        precisions=precisions_of(args),
    )
    well = server.run()
    status = 0 if well else 1
    if server.worker.alive:  # in a long round of a large model: nothing of it is worth waiting for
        sys.stderr.flush()
        os._exit(status)
    return status
