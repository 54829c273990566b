"""`invert-fast logits capture`: texts → a file of next-token log-probs, without the texts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.prompts import read_chats
from ..types import InputError, dtype_named
from .options import DTYPES, counted, inverter_of, model_options, positive, progress, special_option

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "capture",
        help="texts → file of log-probs",
        description="Run texts through a model and keep the next-token log-probs (or logits) of every position. The "
        "file never contains text or ids of the text.",
    )
    model_options(one, layer=False)
    one.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE",
        help="prompts.txt (one a line) or .jsonl (`text` or `messages`)",
    )
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="logits.safetensors to write")
    one.add_argument("--max-tokens", type=positive, metavar="N", help="cut each text to N tokens")
    one.add_argument("--limit", type=positive, metavar="P", help="only the first P texts")
    one.add_argument(
        "--entries",
        type=_entries,
        default=("full", 0),
        metavar="full|n|top-k",
        help="what to keep of each row: all of it (default), the same n random tokens everywhere, or the k largest",
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="which n random tokens (default 0)")
    one.add_argument("--raw", action="store_true", help="logits as the model gives them instead of log-probs")
    one.add_argument("--store-dtype", choices=DTYPES, default="float32", help="precision of the file (default float32)")
    special_option(one)
    one.add_argument("--batch-size", type=positive, default=8, metavar="B", help="texts a forward pass (default 8)")
    one.add_argument("--overwrite", action="store_true", help="replace an existing output")
    one.set_defaults(command=_capture)


def _entries(text: str) -> tuple[str, int]:
    name, number = ("top", text[4:]) if text.startswith("top-") else ("subset", text)
    if text == "full":
        return "full", 0
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not full, a number of tokens such as 320, or top-k as in top-512"
        )
    return name, int(number)


def _capture(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} exists, expected a new file: give another --output, or --overwrite")
    texts = read_chats(args.input, args.limit)
    import torch

    from ..logits.files import write_logits
    from ..logits.unembedding import unembedding

    inverter = inverter_of(args, None)
    decoder, head, dtype = inverter.decoder, unembedding(inverter.decoder), dtype_named(args.store_dtype)
    texts_ids = [inverter.encode(text, args.max_tokens, args.special) for text in texts]
    what, count = args.entries
    if count > decoder.usable_ids:
        raise InputError(
            f"--entries {count} is more than this model's {decoder.usable_ids} tokens: give fewer, or full"
        )
    ids = None
    if what == "subset":
        order = torch.randperm(decoder.usable_ids, generator=torch.Generator().manual_seed(args.seed))
        ids = order[:count].sort().values

    def rows() -> Iterator[tuple[Tensor, Tensor | None]]:
        for hidden in inverter.capture_ids(texts_ids, decoder.dtype, args.batch_size):
            values = head.logits(hidden, args.dtype)
            values = values if args.raw else values.log_softmax(-1)
            own = None
            if ids is not None:
                values = values[:, ids.to(values.device)]
            elif what == "top":
                values, own = values[:, : decoder.usable_ids].topk(count)
            yield values.to("cpu", dtype), None if own is None else own.cpu()

    metadata = {
        "model": decoder.fingerprint(),
        "kind": "logits" if args.raw else "log_probs",
        "dtype": args.store_dtype,
        "compute_dtype": args.dtype,
        "entries": what if what == "full" else f"{what}-{count}",
        "special_tokens": str(args.special).lower(),
    }
    lengths = [len(i) for i in texts_ids]
    with torch.no_grad(), progress(total=len(texts), desc="capture", unit="text") as bar:
        write_logits(args.output, counted(rows(), bar), lengths, count or head.size, dtype, metadata, ids)
    log.info(
        "%s: %d texts, %d tokens, %d entries each, %s %s, model %s",
        args.output, len(texts), sum(lengths), count or head.size, args.store_dtype, metadata["kind"],
        decoder.fingerprint(),
    )  # fmt: skip
    return 0
