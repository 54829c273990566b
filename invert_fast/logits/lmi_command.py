"""`invert-fast logits train` and `logits evaluate`: the learned way from next-token distributions to prompts."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

from ..model import load
from ..types import InputError
from .lmi.network import Architecture
from .lmi.prompts import gather, read_sentences
from .lmi.target import Target
from .lmi.training import Training
from .lmi.view import KINDS, View

_OPTIONS = {(View, "kind"): "input", (View, "steps"): "shown-steps"}
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


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare both commands and their options."""
    _add_train(subparsers)


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
    chosen.add_argument("--bf16", dest="Training.bf16", action="store_true", default=None, help="run the network in bf16")
    one.set_defaults(command=_train)


def _settings(args: argparse.Namespace, kind):
    """The dataclass from the preset and the options that were given."""
    names = [field.name for field in fields(kind)]
    given = {n: getattr(args, f"{kind.__name__}.{n}", None) for n in names}
    preset = {n: v for (owner, n), v in _PRESETS[args.preset].items() if owner is kind}
    return kind(**(preset | {n: v for n, v in given.items() if v is not None}))


def _train(args: argparse.Namespace) -> int:
    from .lmi.network import build
    from .lmi.training import train

    if min(args.prompts, args.held, args.test) < 1:
        raise InputError(f"{args.prompts} prompts, {args.held} held, {args.test} test, expected at least 1 of each")
    view, architecture, how = (_settings(args, kind) for kind in (View, Architecture, Training))
    target = Target(*load(args.model, args.device))
    net = build(target.vocab_size, view, architecture, how.seed, target.table).to(target.device)
    sources = [read_sentences(path) for path in args.text]
    lengths = tuple(args.prompt_tokens)
    prompts = gather(target, sources, args.prompts, lengths, args.held, args.test, args.self_sampled, how.seed)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    rows = zip(prompts.test, target.decode(prompts.test), strict=True)
    lines = [json.dumps({"text": text, "token_ids": ids}, ensure_ascii=False) for ids, text in rows]
    (output / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = train(net, target, prompts, how, output, args.resume)
    if args.json:
        print(json.dumps(asdict(report)))
    else:
        print(
            f"{report.steps} steps; held-out loss {report.held_loss:.3f} nats a token at step {report.at}; "
            f"{report.path}; measure it with `invert-fast logits evaluate --inverter {args.output}`"
        )
    return 0
