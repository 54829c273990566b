"""`invert-fast logits train` and `logits evaluate`: the learned way from next-token distributions to prompts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..lmi.settings import KINDS, SWEEPS, Architecture, Training, View
from ..storage.atomic import write_whole
from ..storage.lock import locked
from ..storage.prompts import read_prompts
from ..types import InputError
from .report import table
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..lmi.metrics import Score
    from ..lmi.target import Target

_EXAMPLES = 4
_OF_VECTORS = ("entries", "whiten", "estimates")
_OPTIONS: dict[tuple[type, str], str] = {(View, "kind"): "input", (View, "steps"): "shown-steps"}
_SMALL_BODY = {
    "body": "tiny",
    "width": 128,
    "layers": 1,
    "decoder_layers": 2,
    "heads": 4,
    "feed_forward": 256,
    "bottleneck": 256,
    "dropout": 0.05,
    "max_tokens": 8,
    "table": "target",
    "whiten": 256,
    "estimates": 4,
}
_SMALL_TRAINING = {
    "steps": 4000,
    "batch": 128,
    "optimizer": "muon",
    "rate": 3e-3,
    "warm": 100,
    "fall": 0.5,
    "look": 100,
}
_PRESETS = {
    "paper": {},  # T5-base, the full vector, Adam at 2e-4 after a warm-up
    "small": {  # what two CPU cores do in under an hour with a small target
        **{(Architecture, name): value for name, value in _SMALL_BODY.items()},
        **{(Training, name): value for name, value in _SMALL_TRAINING.items()},
        (View, "entries"): 288,
    },
}


_Kind = TypeVar("_Kind", View, Architecture, Training)


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare both commands and their options."""
    _add_train(subparsers)
    _add_evaluate(subparsers)


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    one = subparsers.add_parser(
        "train",
        help="train an inverter: next-token distributions to prompts",
        description="Train an encoder-decoder that reads a target's next-token distributions and writes the prompt. "
        "An interrupted training goes on with --resume to the same weights.",
    )
    one.add_argument("--model", required=True, help="the target: a Hugging Face id, a local folder, or `bundled`")
    one.add_argument("--text", nargs="+", required=True, metavar="FILE", help="training text: .txt or .jsonl, also .xz")
    one.add_argument("--output", required=True, metavar="FOLDER", help="where weights, checkpoint and log go")
    one.add_argument("--resume", action="store_true", help="go on with the training in --output")
    one.add_argument("--preset", choices=tuple(_PRESETS), default="paper", help="paper: T5-base; small: two CPU cores")
    one.add_argument("--prompts", type=int, default=100_000, help="training prompts at most (100000)")
    one.add_argument("--prompt-tokens", type=int, nargs=2, default=(4, 32), metavar=("FROM", "TO"))
    one.add_argument("--self-sampled", type=float, default=0.5, help="share of prompts the target writes itself (0.5)")
    one.add_argument("--held", type=int, default=512, help="prompts held out for early stopping (512)")
    one.add_argument("--test", type=int, default=1000, help="prompts held out for `evaluate`, written to test.jsonl")
    one.add_argument("--device", default="cpu")
    one.add_argument("--json", action="store_true", help="print a summary as JSON")
    chosen = one.add_argument_group("settings", "override the preset's")
    for kind, skipped in ((View, ("seed",)), (Architecture, ()), (Training, ("bf16",))):
        for field in fields(kind):
            if field.name not in skipped:
                text = {"kind": f"input: {' or '.join(KINDS)}"}.get(field.name)
                to = {"int": int, "float": float, "str": str, "int | None": int}[str(field.type)]
                option = _OPTIONS.get((kind, field.name), field.name.replace("_", "-"))
                chosen.add_argument(f"--{option}", dest=f"{kind.__name__}.{field.name}", type=to, help=text)
    chosen.add_argument(
        "--bf16", dest="Training.bf16", action="store_true", default=None, help="run the network in bf16"
    )
    one.set_defaults(command=_train)


def _settings(args: argparse.Namespace, kind: type[_Kind]) -> _Kind:
    """The dataclass from the preset and the options that were given."""
    names = [field.name for field in fields(kind)]
    given = {n: getattr(args, f"{kind.__name__}.{n}", None) for n in names}
    text = getattr(args, "View.kind") == "text"  # shows no probabilities to choose from
    preset = {
        n: v for (owner, n), v in _PRESETS[args.preset].items() if owner is kind and not (text and n in _OF_VECTORS)
    }
    return kind(**(preset | {n: v for n, v in given.items() if v is not None}))


def _train(args: argparse.Namespace) -> int:
    if min(args.prompts, args.held, args.test) < 1:
        raise InputError(f"{args.prompts} prompts, {args.held} held, {args.test} test, expected at least 1 of each")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / "test.jsonl"):
        return _trained(args, output)


def _trained(args: argparse.Namespace, output: Path) -> int:
    from ..lmi.network import build
    from ..lmi.prompts import gather, read_sentences
    from ..lmi.target import Target
    from ..lmi.training import train
    from ..model.load import load

    view, architecture, how = _settings(args, View), _settings(args, Architecture), _settings(args, Training)
    target = Target(*load(args.model, args.device))
    net = build(target.vocab_size, view, architecture, how.seed, target.table).to(target.device)
    sources = [read_sentences(path) for path in args.text]
    lengths = tuple(args.prompt_tokens)
    prompts = gather(target, sources, args.prompts, lengths, args.held, args.test, args.self_sampled, how.seed)
    rows = zip(prompts.test, target.decode(prompts.test), strict=True)
    lines = [json.dumps({"text": text, "token_ids": ids}, ensure_ascii=False) for ids, text in rows]
    write_whole(output / "test.jsonl", ("\n".join(lines) + "\n").encode())
    report = train(net, target, prompts, how, output, args.resume)
    if args.json:
        say_json(asdict(report))
    else:
        say(
            f"{report.steps} steps; held-out loss {report.held_loss:.3f} nats a token at step {report.at}; "
            f"{report.path}; measure it with `invert-fast logits evaluate --inverter {args.output}`"
        )
    return 0


def _add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    one = subparsers.add_parser(
        "evaluate",
        help="measure a trained inverter on held-out prompts",
        description="BLEU, token F1 and exact match, in per cent with 95 % bootstrap intervals, on the prompts that "
        "the training held out or on a file of others.",
    )
    one.add_argument("--inverter", required=True, metavar="FOLDER", help="the --output of `logits train`")
    one.add_argument("--model", required=True, help="the target, or another model with its tokenizer (transfer)")
    one.add_argument("--prompts", type=Path, metavar="FILE", help=".txt or .jsonl (default: test.jsonl in FOLDER)")
    one.add_argument(
        "--prompt-tokens", type=int, nargs=2, metavar=("FROM", "TO"), help="cut other prompts as the training did"
    )
    one.add_argument("--limit", type=int, help="only the first so many prompts")
    one.add_argument("--beams", type=int, default=1, help="beams of the search (1: greedy)")
    one.add_argument("--ask", action="store_true", help="let the target's answers to all beams choose among them")
    one.add_argument("--sweep", nargs="+", choices=tuple(SWEEPS), default=(), help="also blur the target's answers")
    one.add_argument("--baselines", action="store_true", help="also ask the model itself, in words")
    one.add_argument("--output", type=Path, metavar="FILE", help="write each prompt and what was recovered, .jsonl")
    one.add_argument("--device", default="cpu")
    one.add_argument("--json", action="store_true", help="print everything as JSON")
    one.set_defaults(command=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from ..lmi import baselines, checkpoint
    from ..lmi.evaluate import by_length, evaluate, sweep
    from ..lmi.target import Target
    from ..model.load import load

    net, _ = checkpoint.read(args.inverter)
    target = Target(*load(args.model, args.device))
    net = net.to(target.device)
    prompts = _prompts(args, target)
    if args.baselines and len(prompts) <= _EXAMPLES:
        raise InputError(
            f"{len(prompts)} prompts, expected more than the {_EXAMPLES} that --baselines shows as examples"
        )
    result = evaluate(net, target, prompts, args.beams, args.ask)
    name = f"{args.beams} beams, asked" if args.ask else f"{args.beams} beams" if args.beams > 1 else "greedy"
    rows: list[tuple[str, Score]] = [(name, result.score)]
    if args.sweep:
        swept = sweep(net, target, prompts, args.sweep)
        rows += [(f"{what} {value:g}" if value else what, score) for what, value, score in swept]
    if args.baselines:
        rows += list(baselines.jailbreak(target, prompts).items())
        rows.append(("few-shot", baselines.few_shot(target, prompts[_EXAMPLES:], prompts[:_EXAMPLES])))
    lengths = by_length(result, target, prompts)
    if args.output:
        pairs = zip(target.decode(prompts), result.found, strict=True)
        lines = [json.dumps({"text": text, "found": found}, ensure_ascii=False) for text, found in pairs]
        write_whole(args.output, ("\n".join(lines) + "\n").encode())
    if args.json:
        summary = {"results": [{"name": name, **asdict(score)} for name, score in rows]}
        summary |= {"by_length": {n: {"prompts": m, "exact": 100 * share} for n, (m, share) in lengths.items()}}
        summary |= {"verified": result.verified, "false": result.false, "queries": result.queries}
        say_json(summary)
        return 0
    say(table(("", "prompts", "BLEU", "token F1", "exact %"), [_row(*row) for row in rows]))
    say("exact by length in tokens: " + ", ".join(f"{n}: {100 * share:.1f} %" for n, (_, share) in lengths.items()))
    if args.ask:
        say(f"{result.verified} verified by asking ({result.queries} queries), {result.false} of them wrong")
    return 0


def _row(name: str, score: Score) -> Sequence[str]:
    return name, str(score.prompts), str(score.bleu), str(score.f1), str(score.exact)


def _prompts(args: argparse.Namespace, target: Target) -> list[list[int]]:
    """Token ids of the prompts to measure on."""
    from ..lmi.prompts import cut

    path = args.prompts or Path(args.inverter) / "test.jsonl"
    texts = read_prompts(path, args.limit)
    if not args.prompt_tokens:
        return target.encode(texts)
    return [list(ids) for ids in dict.fromkeys(map(tuple, cut(target, texts, tuple(args.prompt_tokens), 0)))]
