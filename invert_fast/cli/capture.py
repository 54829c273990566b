"""`invert-fast capture`: texts → states file, without the texts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.prompts import read_chats
from ..types import InputError
from .options import STORED, counted, inverter_of, model_options, positive, progress, special_option

if TYPE_CHECKING:
    from ..inverter import Inverter

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "capture",
        help="texts → states file",
        description="Run texts through a model and keep one layer's hidden states. The file never "
        "contains text or token ids.",
    )
    model_options(one)
    one.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help="prompts.txt (one a line) or .jsonl (`text` or `messages`)",
    )
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="states.safetensors to write")
    one.add_argument("--max-tokens", type=positive, metavar="N", help="cut each text to N tokens")
    one.add_argument("--limit", type=positive, metavar="P", help="only the first P texts")
    one.add_argument("--store-dtype", choices=STORED, default="float32", help="precision of the file (default float32)")
    special_option(one)
    one.add_argument("--batch-size", type=positive, default=32, metavar="B", help="texts a forward pass (default 32)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing output")
    one.set_defaults(command=_capture)


def _told(inverter: Inverter, args: argparse.Namespace, texts: list) -> Iterator[str]:
    """What the tokenizer adds, and the Hugging Face call that this stands for, for texts and for chats."""
    from ..intake.prompts import hugging_face_call, special_words

    chats = [not isinstance(text, str) for text in texts]
    for chat in sorted(set(chats)):
        kind = "chats" if chat else "texts"
        how = "written by the tokenizer's chat template" if chat else special_words(inverter.decoder, args.special)
        yield f"{chats.count(chat)} {kind}, {how}; each as by"
        yield from (f"  {line}" for line in hugging_face_call(inverter.decoder, args.special, chat, args.max_tokens))


def _capture(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists, expected a new file: give another --output, or --overwrite")
    texts = read_chats(args.input, args.limit)
    from ..storage.precisions import CODES, stored_dtype
    from ..storage.states import write_states

    inverter = inverter_of(args, args.layer)
    ids = [inverter.encode(text, args.max_tokens, args.special) for text in texts]
    cut = sum(len(i) == inverter.decoder.max_length and not args.max_tokens for i in ids)
    if cut:
        log.warning(
            "%d texts fill the model's %d positions and may have been cut there", cut, inverter.decoder.max_length
        )
    dtype, decoder = stored_dtype(args.store_dtype), inverter.decoder
    metadata = {
        "model": decoder.fingerprint(),
        "layer": decoder.layer.name,
        "dtype": args.store_dtype,
        "compute_dtype": args.dtype,
        "special_tokens": str(args.special).lower(),
    }
    for line in _told(inverter, args, texts):
        log.info("%s", line)
    captured = {"dtype": dtype} if args.store_dtype not in CODES else {}  # codes are made as they are written
    hidden = inverter.capture_ids(ids, batch_size=args.batch_size, **captured)
    with progress(total=len(ids), desc="capture", unit="text") as bar:
        write_states(args.output, counted(hidden, bar), [len(i) for i in ids], decoder.width, dtype, metadata)
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
