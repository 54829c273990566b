"""`invert-fast defend`: states file → states file as a defence gives it away, and what that costs the model."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.prompts import read_chats
from ..strategies import registry
from ..types import InputError, dtype_named
from .options import counted, inverter_of, loading, model_options, positive, progress, special_option, whole
from .terminal import say

if TYPE_CHECKING:
    from ..defences.base import Defence
    from ..inverter import Inverter
    from ..storage.joined import Source
    from ..types import States

_MEASURED = 64
log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "defend",
        help="states file → defended states file, and what the defence costs",
        description="Apply a defence (noise, clipping, quantisation, sparsification, rotation, missing rows) to the "
        "states of a file, and print how much worse the model goes on from them: its next-token loss in nats, against "
        "that from the states as they were. Texts are those of --reference, or else what inverting the undefended "
        "states gives, where it is certified.",
    )
    model_options(one)
    one.add_argument("--input", type=Path, required=True, metavar="FILE", help="states to defend, as for invert")
    one.add_argument("--tensor", metavar="NAME", help="which tensor or column holds the states, if several could")
    one.add_argument(
        "--defence",
        required=True,
        metavar="NAME:STRENGTH",
        help="gaussian:0.05, laplace:0.05, private:8:4:1e-5 (clip, epsilon, delta), quantise:4 (bits), topk:64 or "
        "topk:0.25, rotation:7 (key), drop:0.1",
    )
    one.add_argument("--seed", type=whole, default=0, metavar="N", help="of all that is random (default 0)")
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="states.safetensors to write")
    one.add_argument("--overwrite", action="store_true", help="replace an existing output")
    one.add_argument("--reference", type=Path, metavar="FILE", help="the prompts that were captured, .txt or .jsonl")
    special_option(one, ": as in the capture, with --reference")
    one.add_argument(
        "--measure", type=positive, default=_MEASURED, metavar="P", help="texts the cost is measured on (default 64)"
    )
    one.add_argument("--attack", action="store_true", help="invert what is given away, too, and count what comes back")
    one.add_argument(
        "--strategy", choices=registry.names(), default="auto", help="with --attack: of the inversion (default auto)"
    )
    one.add_argument("--json", action="store_true", help="print the figures as JSON")
    one.set_defaults(command=_defend)


def _defend(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists, expected a new file: give another --output, or --overwrite")
    with loading():
        from ..defences.spec import parse_defence
        from ..intake.files import named_layer, open_source

    defence = parse_defence(args.defence)
    references = None if args.reference is None else read_chats(args.reference)
    inverter = inverter_of(args, args.layer if args.layer is not None else named_layer(args.input))
    layer = inverter.decoder.layer
    source = open_source(args.input, layer, args.tensor)
    source = source.without_model() if args.insist else source
    lengths = source.lengths()
    inverter.check_lengths(lengths)
    source.check_finite()
    batch = [source.states(i, layer.name) for i in range(min(args.measure, len(lengths)))]
    for index, states in enumerate(batch):
        inverter.checked(index, states)
    texts = _texts(args, inverter, batch, references)
    _write(args, inverter, source, defence)
    figures = _figures(args, inverter, defence, texts, batch)
    say(json.dumps(figures) if args.json else _said(args, figures))
    return 0


def _texts(args: argparse.Namespace, inverter: Inverter, batch: list[States], references) -> dict[int, list[int]]:
    """Token ids of the texts that the cost is measured on, by their number."""
    if references is not None:
        ids = [inverter.encode(text, special=args.special) for text in references[: len(batch)]]
        if [*map(len, ids)] != [*map(len, batch)]:
            wrong = next((i for i, (a, b) in enumerate(zip(ids, batch, strict=False)) if len(a) != len(b)), len(ids))
            raise InputError(
                f"{args.reference} is not of these states (text {wrong} has another number of tokens than rows), "
                "expected the prompts that were captured: check the order, and --no-special"
            )
        return dict(enumerate(ids))
    found = inverter.invert(batch)
    return {i: recovery.token_ids.tolist() for i, recovery in enumerate(found) if recovery.certified}


def _write(args: argparse.Namespace, inverter: Inverter, source: Source, defence: Defence) -> None:
    from ..storage.states import write_states

    layer, lengths = inverter.decoder.layer.name, source.lengths()
    head = source.states(0, layer) if lengths else None
    metadata = {"layer": layer, "defence": defence.spec, "seed": str(args.seed)}
    dtype = "float32" if head is None else str(head.hidden.dtype).removeprefix("torch.")
    dtype = dtype if dtype in ("float16", "bfloat16") else "float32"
    if head is not None:
        metadata |= {"dtype": head.dtype, "compute_dtype": head.compute_dtype}
        metadata |= {} if head.model is None else {"model": head.model}
    kept = [len(defence.kept(length, args.seed + i)) for i, length in enumerate(lengths)]
    given = (
        defence.apply(source.states(i, layer), args.seed + i).hidden.to(dtype_named(dtype)) for i in range(len(lengths))
    )
    with progress(total=len(lengths), desc="defend", unit="text") as bar:
        width = inverter.decoder.width
        write_states(args.output, counted(given, bar), kept, width, dtype_named(dtype), metadata)


def _figures(
    args: argparse.Namespace, inverter: Inverter, defence: Defence, texts: dict[int, list[int]], batch: list[States]
) -> dict:
    """What the defence costs, and what is left to an attacker, on the texts that are known."""
    from ..defences.attack import attacked
    from ..defences.utility import utility_of

    ids = [texts.get(i) for i in range(len(batch))]
    found = utility_of(defence, inverter.decoder, ids, batch, args.seed)
    figures = {
        "defence": defence.spec,
        "seed": args.seed,
        "layer": inverter.decoder.layer.name,
        "texts": len(texts),
        "of_texts": len(batch),
        **{name: round(value, 6) for name, value in asdict(found).items()},
        "added": round(found.added, 6),
    }
    if args.attack:
        result = attacked(inverter, defence, ids, batch, args.seed, args.strategy)
        names = ("recovered", "certified", "wrong")
        figures |= {"strategy": args.strategy, **{name: round(getattr(result, name), 6) for name in names}}
    return figures


def _said(args: argparse.Namespace, figures: dict) -> str:
    lines = [f"{figures['defence']} (seed {figures['seed']}) → {args.output}"]
    if not figures["tokens"]:
        why = "no text of two tokens or more is known: give the prompts that were captured (--reference)"
        return "\n".join([*lines, f"the cost was not measured: {why}"])
    if figures["texts"] < figures["of_texts"]:
        log.warning(
            "%d of %d texts are certified without the defence, and only these were measured: give --reference",
            *(figures["texts"], figures["of_texts"]),
        )
    lines.append(
        f"next-token loss from {figures['layer']}: {figures['undefended']:.4f} → {figures['loss']:.4f} nats "
        f"({figures['added']:+.4f}), {figures['tokens']} tokens of {figures['texts']} texts"
    )
    if "recovered" in figures:
        lines.append(
            f"`{figures['strategy']}`, told nothing of it: {100 * figures['recovered']:.1f} % of the tokens recovered, "
            f"{100 * figures['certified']:.1f} % certified"
        )
    return "\n".join(lines)
