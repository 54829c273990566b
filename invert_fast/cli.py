"""The command line: capture, fit, invert, score, demo. Exit status: 0 all certified, 1 some not, 2 bad input."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from . import __version__, demo, files
from .fit_command import add_fit
from .inverter import STRATEGIES, Inverter
from .report import score, table
from .strategies import PRESETS
from .strategies.base import Strategy
from .types import InputError, Status, dtype_named

log = logging.getLogger("invert_fast")
_DTYPES = ("float32", "float16", "bfloat16")


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
    _model_options(one)
    one.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="prompts.txt (one a line) or .jsonl (`text`)"
    )
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="states.safetensors to write")
    one.add_argument("--max-tokens", type=_positive, metavar="N", help="cut each text to N tokens")
    one.add_argument("--limit", type=_positive, metavar="P", help="only the first P texts")
    one.add_argument(
        "--store-dtype", choices=_DTYPES, default="float32", help="precision of the file (default float32)"
    )
    one.add_argument(
        "--special-tokens",
        action="store_true",
        help="let the tokenizer add its own (a BOS then has a row like any token)",
    )
    one.add_argument("--batch-size", type=_positive, default=32, metavar="B", help="texts a forward pass (default 32)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing output")
    one.set_defaults(command=_capture)

    add_fit(commands, _model_options, _positive)

    one = commands.add_parser(
        "invert",
        help="states file → recovered.jsonl",
        description="Recover the texts of a states file, one JSON line a text, written as it is found.",
    )
    _model_options(one)
    one.add_argument("states", type=Path, help=".safetensors (from `capture`, or one [T, D] tensor) or .npy")
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="recovered.jsonl to write")
    one.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="auto",
        help="how candidates are found (default auto: draft, verify, repair; a few gradient steps; then all tokens)",
    )
    one.add_argument("--preset", choices=PRESETS, help="operating point of --strategy continuous (default baseline)")
    one.add_argument(
        "--trace",
        action="store_true",
        help="with --strategy continuous: write loss curves, rank trajectories and cumulative discrete loss as well",
    )
    one.add_argument("--batch-size", type=_positive, metavar="B", help="texts at once (default: what fits in memory)")
    one.add_argument(
        "--max-memory", type=_gib, metavar="GiB", help="memory to stay within (default: half of what is free)"
    )
    one.add_argument("--resume", action="store_true", help="go on with an output file that exists")
    one.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="i/n", help="only the i-th of n parts of the texts"
    )
    one.add_argument(
        "--states-dtype", choices=_DTYPES, help="precision the states were stored in, if the file is silent"
    )
    one.add_argument("--compute-dtype", choices=_DTYPES, help="precision they were computed in, if the file is silent")
    one.add_argument("--json", action="store_true", help="print a summary as JSON")
    one.set_defaults(command=_invert)

    one = commands.add_parser(
        "score",
        help="recovered.jsonl against the true prompts",
        description="Compare recovered texts with their references. With --model by token, without by text only.",
    )
    one.add_argument("recovered", type=Path, help="recovered.jsonl")
    one.add_argument("--reference", type=Path, required=True, metavar="FILE", help="the prompts that were captured")
    one.add_argument("--model", metavar="M", help="the model of the capture: its tokenizer cuts the references")
    one.add_argument("--max-tokens", type=_positive, metavar="N", help="as in the capture (needs --model)")
    one.add_argument("--special-tokens", action="store_true", help="as in the capture (needs --model)")
    one.add_argument("--json", action="store_true", help="print the scores as JSON")
    one.set_defaults(command=_score)
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M", help="Hugging Face id, local folder, or `bundled`")
    parser.add_argument(
        "--layer",
        metavar="L",
        help="hidden_states index, block:k, final_norm or embeddings (default: the file's, else -1)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 … (default: cuda when there is one)")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="float32",
        help="precision of our forward passes (default float32, which certifies best)",
    )
    parser.add_argument(
        "--insist",
        action="store_true",
        help="try a model family that was not tested, and states whose fingerprint is another model's",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of GiB above 0")
    return value


def _shard(text: str) -> tuple[int, int]:
    part, _, whole = text.partition("/")
    if not (part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole)):
        raise argparse.ArgumentTypeError(f"'{text}' is not i/n with 1 ≤ i ≤ n, for example 2/4")
    return int(part), int(whole)


def _strategy(args: argparse.Namespace) -> str | Strategy:
    if args.strategy == "continuous":
        return PRESETS[args.preset or "baseline"](trace=args.trace)
    if args.preset or args.trace:
        option = "--preset" if args.preset else "--trace"
        raise InputError(f"{option} is an option of the continuous search: add --strategy continuous, or leave it out")
    return args.strategy


def _inverter(args: argparse.Namespace, layer: str | None) -> Inverter:
    return Inverter.from_pretrained(
        args.model, -1 if layer is None else layer, args.device, args.dtype, insist=args.insist
    )


def _bar(**options) -> tqdm:
    """A progress bar on stderr for whatever takes over two seconds."""
    return tqdm(delay=2, file=sys.stderr, dynamic_ncols=True, **options)


def _capture(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists, expected a new file: give another --output, or --overwrite")
    texts = files.read_prompts(args.input, args.limit)
    inverter = _inverter(args, args.layer)
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
    with _bar(total=len(ids), desc="capture", unit="text") as bar:
        files.write_states(args.output, _counted(hidden, bar), [len(i) for i in ids], decoder.width, dtype, metadata)
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


def _counted(items, bar: tqdm):
    for item in items:
        yield item
        bar.update()


def _invert(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.resume:
        raise InputError(
            f"{args.output} exists, expected a new file: give another --output, or --resume to go on with it"
        )
    strategy = _strategy(args)
    source = files.open_states(args.states)
    source.check_finite()
    inverter = _inverter(args, args.layer if args.layer is not None else source.layer)
    if args.insist:
        source = files.without_model(source)
    layer, lengths = inverter.decoder.layer.name, source.lengths()
    told = files.head(source, layer)
    inverter.checked(0, told)  # width, layer and model, before anything is written
    inverter.check_lengths(lengths)
    part, parts = args.shard
    todo = [i for i in range(len(source)) if i % parts == part - 1]
    done = files.resume(args.output, lengths) if args.output.exists() else set()
    todo = sorted((i for i in todo if i not in done), key=lambda i: -lengths[i])  # like lengths share a pass
    start = time.perf_counter()
    tolerances = inverter.calibrate(args.states_dtype or told.dtype, args.compute_dtype or told.compute_dtype)
    log.info("%s states, %s", args.states_dtype or told.dtype, tolerances.describe())
    found = inverter.invert_iter(
        ((i, source.states(i, layer)) for i in todo),
        strategy,
        lengths=[lengths[i] for i in todo],
        batch_size=args.batch_size,
        max_memory=args.max_memory,
        tolerances=tolerances,
    )
    tokens, forward, certified, worst = 0, 0, 0, {}
    with (
        args.output.open("a", encoding="utf-8") as out,
        _bar(total=sum(lengths[i] for i in todo), desc="invert", unit="token") as bar,
    ):
        for index, recovery in found:
            out.write(files.recovery_line(index, recovery) + "\n")
            out.flush()
            tokens, forward = tokens + lengths[index], forward + recovery.cost.forward_tokens
            certified += recovery.certified
            if (at := recovery.first_failure) is not None:
                worst.setdefault(Status(int(recovery.status[at])), (index, at))
            bar.update(lengths[index])
    seconds = time.perf_counter() - start
    for status, (index, at) in sorted(worst.items()):
        log.warning("text %d, position %d is %s: %s", index, at, status.label, status.sentence)
    summary = {
        "prompts": len(todo),
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
        print(json.dumps(summary))
    else:
        already = f" ({len(done)} were there already)" if done else ""
        print(
            f"{certified} of {len(todo)} texts certified{already}, {tokens} tokens in {seconds:.1f} s "
            f"({summary['tokens_per_second']:,} tokens/s, {summary['forward_tokens_per_token']} forward tokens a "
            f"token) → {args.output}"
        )
    return 0 if certified == len(todo) else 1


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
    with _bar(total=len(rows), desc="score", unit="text") as bar:
        result = score(_counted((rows[i] for i in sorted(rows)), bar), references)
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
    with _bar(total=len(STRATEGIES) + 1, unit="step", leave=False) as bar:

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
