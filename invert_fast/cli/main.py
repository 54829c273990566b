"""The command line: capture, fit, invert, score, demo. Exit status: 0 all certified, 1 some not, 2 bad input."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .. import __version__
from ..inverter import Inverter
from ..storage import files
from ..strategies import registry
from ..types import InputError, dtype_named
from . import demo
from .fit import add_fit
from .invert import add_invert
from .logits import add_logits
from .options import DTYPES, counted, inverter_of, model_options, positive, progress
from .report import score, table

log = logging.getLogger("invert_fast")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
    _configure_logging()
    try:
        return args.command(args)
    except InputError as error:
        print(f"invert-fast: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"invert-fast: {error.filename or 'file'}: {error.strerror or error}: check the path and its permissions",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("invert-fast: interrupted; what was found is on disk, --resume goes on from there", file=sys.stderr)
        return 130
    return 2


def _configure_logging() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("invert-fast: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="invert-fast",
        description="Turn a language model's hidden states back into the exact text, with a "
        "certificate for every token.",
        epilog="Exit status: 0 all certified, 1 some not, 2 usage or bad input.",
    )
    parser.add_argument("--version", action="version", version=f"invert-fast {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "demo",
        help="bundled model, real text, all strategies side by side",
        description="Capture the states of real sentences with the bundled model, throw the text "
        "away, recover it with every strategy and print what it took.",
    )
    one.add_argument("--json", action="store_true", help="print the rows as JSON")
    one.set_defaults(command=_demo)

    one = commands.add_parser(
        "capture",
        help="texts → states file",
        description="Run texts through a model and keep one layer's hidden states. The file never "
        "contains text or token ids.",
    )
    model_options(one)
    one.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="prompts.txt (one a line) or .jsonl (`text`)"
    )
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="states.safetensors to write")
    one.add_argument("--max-tokens", type=positive, metavar="N", help="cut each text to N tokens")
    one.add_argument("--limit", type=positive, metavar="P", help="only the first P texts")
    one.add_argument("--store-dtype", choices=DTYPES, default="float32", help="precision of the file (default float32)")
    one.add_argument(
        "--special-tokens",
        action="store_true",
        help="let the tokenizer add its own (a BOS then has a row like any token)",
    )
    one.add_argument("--batch-size", type=positive, default=32, metavar="B", help="texts a forward pass (default 32)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing output")
    one.set_defaults(command=_capture)

    add_fit(commands, model_options, positive)

    add_invert(commands)
    add_logits(commands)

    one = commands.add_parser(
        "score",
        help="recovered.jsonl against the true prompts",
        description="Compare recovered texts with their references. With --model by token, without by text only.",
    )
    one.add_argument("recovered", type=Path, help="recovered.jsonl")
    one.add_argument("--reference", type=Path, required=True, metavar="FILE", help="the prompts that were captured")
    one.add_argument("--model", metavar="M", help="the model of the capture: its tokenizer cuts the references")
    one.add_argument("--max-tokens", type=positive, metavar="N", help="as in the capture (needs --model)")
    one.add_argument("--special-tokens", action="store_true", help="as in the capture (needs --model)")
    one.add_argument("--json", action="store_true", help="print the scores as JSON")
    one.set_defaults(command=_score)
    return parser


def _capture(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists, expected a new file: give another --output, or --overwrite")
    texts = files.read_prompts(args.input, args.limit)
    inverter = inverter_of(args, args.layer)
    ids = [inverter.encode(text, args.max_tokens, args.special_tokens) for text in texts]
    cut = sum(len(i) == inverter.decoder.max_length and not args.max_tokens for i in ids)
    if cut:
        log.warning(
            "%d texts fill the model's %d positions and may have been cut there", cut, inverter.decoder.max_length
        )
    dtype, decoder = dtype_named(args.store_dtype), inverter.decoder
    metadata = {
        "model": decoder.fingerprint(),
        "layer": decoder.layer.name,
        "dtype": args.store_dtype,
        "compute_dtype": args.dtype,
        "special_tokens": str(args.special_tokens).lower(),
    }
    hidden = inverter.capture_ids(ids, dtype, args.batch_size)
    with progress(total=len(ids), desc="capture", unit="text") as bar:
        files.write_states(args.output, counted(hidden, bar), [len(i) for i in ids], decoder.width, dtype, metadata)
    log.info(
        "%s: %d texts, %d tokens, layer %s, %s, model %s",
        args.output,
        len(ids),
        sum(map(len, ids)),
        decoder.layer.name,
        args.store_dtype,
        decoder.fingerprint(),
    )
    return 0


def _score(args: argparse.Namespace) -> int:
    if args.model is None and (args.max_tokens or args.special_tokens):
        raise InputError(
            "--max-tokens and --special-tokens cut by tokens, which needs a tokenizer: give --model as well"
        )
    rows = {row["index"]: row for row in files.read_recovered(args.recovered)}
    texts = files.read_prompts(args.reference)
    beyond = [i for i in rows if not 0 <= i < len(texts)]
    if beyond:
        raise InputError(
            f"{args.recovered} has text {max(beyond)}, {args.reference} has {len(texts)}: give the prompts "
            "that were captured"
        )
    inverter = Inverter.from_pretrained(args.model, device="cpu", insist=True) if args.model else None
    references: list[tuple[list[int] | None, str]] = []
    for index in sorted(rows):
        if inverter is None:
            references.append((None, texts[index]))
        else:
            ids = inverter.encode(texts[index], args.max_tokens, args.special_tokens)
            references.append((ids, inverter.decoder.decode(ids) or ""))
    with progress(total=len(rows), desc="score", unit="text") as bar:
        result = score(counted((rows[i] for i in sorted(rows)), bar), references)
    missing = max(rows, default=-1) + 1 - len(rows)
    if missing:
        log.warning(
            "%d texts before the last one found are missing and were not scored: was the run finished?", missing
        )
    if args.json:
        print(json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in asdict(result).items()}))
    else:
        accuracy = "–" if result.token_accuracy is None else f"{result.token_accuracy:.4f}"
        print(
            table(
                ["prompts", "exact match", "token accuracy", "similarity"],
                [[str(result.prompts), f"{result.exact_match:.4f}", accuracy, f"{result.similarity:.4f}"]],
            )
        )
    return 0


def _demo(args: argparse.Namespace) -> int:
    inverter = Inverter.from_pretrained("bundled")
    texts = demo.sentences()
    if not args.json:
        print(
            f"{len(texts)} sentences, captured with the bundled model at {inverter.decoder.layer.name}, text thrown "
            "away\n",
            flush=True,
        )
    with progress(total=len(registry.BUILT_IN) + 2, unit="step", leave=False) as bar:

        def step(name: str) -> None:
            bar.set_description(name)
            bar.update()

        rows = demo.run(inverter, texts, step)
    if args.json:
        print(json.dumps(demo.as_json(rows)))
    else:
        print(demo.show(rows, inverter))
    auto = rows[0]
    return 0 if auto.exact_match == auto.certified == 1.0 else 1


def entry() -> None:
    """The console script. A closed pipe downstream is no error of ours."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)


if __name__ == "__main__":
    entry()
