"""What the commands share: options that mean the same everywhere, their types, and progress bars."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..types import QUANTISED

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..inverter import Inverter
    from ..model.reading import Reading

DTYPES = ("float32", "float16", "bfloat16")
STORED = (*DTYPES, *QUANTISED)
COMPUTED = (*DTYPES, "int8")  # of a pass; int8: its weights alone
_Item = TypeVar("_Item")


def add_commands(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Commands of a parser: the files of this folder that declare them."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        import_module(f".{name}", __package__).add(commands)


def model_options(
    parser: argparse.ArgumentParser,
    layer: bool = True,
    required: bool = True,
    *,
    default: str | None = None,
    states: bool = True,
) -> None:
    """--model, --layer (where there is a choice), --device, --dtype, and of commands that are given states --insist.
    default: the model where none is named; None asks for one, where one is required."""
    named = "Hugging Face id, local folder, .gguf file, or `bundled`" + (f" (default: {default})" if default else "")
    parser.add_argument("--model", required=required and default is None, default=default, metavar="M", help=named)
    if layer:
        usual = "the file's, else -1" if states else "-1"
        parser.add_argument(
            "--layer",
            metavar="L",
            help=f"hidden_states index, block:k, final_norm or embeddings (default: {usual})",
        )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 … (default: cuda when there is one)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="precision of our forward passes (default float32, which certifies best)",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="also say what is fitted, measured or read back, from what, and where it is kept",
    )
    if states:
        parser.add_argument(
            "--insist",
            action="store_true",
            help="use states that say they are of another model or layer",
        )


def special_option(parser: argparse.ArgumentParser, note: str = "") -> None:
    """--no-special."""
    parser.add_argument(
        "--no-special",
        dest="special",
        action="store_false",
        help="leave out what the tokenizer adds to a text by itself, such as a BOS (which has a row like any token)"
        + note,
    )


def states_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the states are."""
    parser.add_argument(
        "states", type=Path, help="file of states or folder of such: .safetensors, .npy, .npz, .pt, .arrow, .parquet"
    )
    parser.add_argument(
        "--tensor",
        metavar="NAME",
        help="which tensor or column holds the states, if several could; 'text_*' takes all so called, as texts",
    )


def reading_options(parser: argparse.ArgumentParser) -> None:
    """What else happened to states before they came here; `diagnose` finds out which of it."""
    parser.add_argument(
        "--position-offset",
        type=whole,
        default=0,
        metavar="K",
        help="position of the first row (left padding shifts models with absolute positions)",
    )
    parser.add_argument(
        "--centered", action="store_true", help="the mean over the width was taken out of every row (TransformerLens)"
    )
    parser.add_argument(
        "--scale",
        type=factor,
        default=1.0,
        metavar="S",
        help="rows were multiplied by this number, or `unit`: each was divided by its length",
    )
    parser.add_argument(
        "--prefix",
        type=token_ids,
        default=(),
        metavar="IDS",
        help="ids, with commas, of known tokens before the first row that have no rows themselves (a BOS)",
    )


def inverter_of(args: argparse.Namespace, layer: str | None, **reading: Reading) -> Inverter:
    """The inverter that `model_options` ask for; reading: of states that are to be read in another way."""
    with loading():
        from ..inverter import Inverter

        return Inverter.from_pretrained(args.model, -1 if layer is None else layer, args.device, args.dtype, **reading)


@contextmanager
def loading() -> Iterator[None]:
    """Do not look for garbage meanwhile: modules and a model are a million objects that stay, and looking through them
    again and again takes a third of the time that they need."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # both together only say that they are old: nothing is looked at, nothing kept for ever
        gc.unfreeze()
        if was:
            gc.enable()


def number(text: str, wanted: str, good: Callable[[float], bool]) -> float:
    """The number that a text is, if it is a good one, else an error that says what was wanted."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not good(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def reading_of(args: argparse.Namespace) -> Reading:
    """What `reading_options` ask for."""
    with loading():
        from ..model.reading import Reading

    return Reading(*reading_told(args))


def reading_told(args: argparse.Namespace) -> tuple:
    """The same, for a process that is to make it."""
    return args.position_offset, args.centered, args.scale, args.prefix


def devices(text: str) -> list[str]:
    named = [name.strip() for name in text.split(",")]
    if not all(named):
        raise argparse.ArgumentTypeError(f"'{text}' is not names of devices with commas, for example cuda:0,cuda:1")
    return named


def noise(text: str) -> str:
    """`auto`, or what `Noise.spec` writes."""
    if text == "auto":
        return text
    from ..storage.noise import noise_named

    try:
        return str(noise_named(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number, 0 or more")
    return int(text)


def token_ids(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not token ids with commas, for example 1 or 1,529")
    return tuple(map(int, parts))


def positions(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not positions with commas, for example 7 or 7,8")
    return tuple(map(int, parts))


def factor(text: str) -> float | str:
    return text if text == "unit" else number(text, "`unit` or a number above 0", lambda v: 0 < v < float("inf"))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def gib(text: str) -> float:
    return number(text, "a number of GiB above 0", lambda value: 0 < value < float("inf"))


def shard(text: str) -> tuple[int, int]:
    part, _, whole = text.partition("/")
    if not (part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole)):
        raise argparse.ArgumentTypeError(f"'{text}' is not i/n with 1 ≤ i ≤ n, for example 2/4")
    return int(part), int(whole)


def progress(**options) -> tqdm:
    """A progress bar on stderr for whatever takes over two seconds."""
    from tqdm import tqdm

    return tqdm(delay=2, file=sys.stderr, dynamic_ncols=True, **options)


def counted(items: Iterable[_Item], bar: tqdm) -> Iterator[_Item]:
    """The items, one tick of the bar each."""
    for item in items:
        yield item
        bar.update()
