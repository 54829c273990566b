"""`invert-fast prepare`: what the first inversion of a model would fit and measure, ahead of time."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .options import DTYPES, STORED, inverter_of, model_options
from .terminal import say, say_json

if TYPE_CHECKING:
    from ..inverter import Inverter

FITTED = "an earlier fit"


@dataclass(frozen=True)
class Prepared:
    """One thing that is there now. what: in words; source: from what it was made, or `the cache`; seconds it took; path
    where it is kept, None when the cache is off or cannot be written."""

    what: str
    source: str
    seconds: float
    path: str | None


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "prepare",
        help="fit and measure ahead of time what the first inversion needs",
        description="Fit the linear lens of one layer of a model and measure its tolerances, which `invert` would else "
        "do on first use. They are kept in the cache folder (INVERT_FAST_CACHE).",
    )
    model_options(one)
    one.add_argument(
        "--states-dtype",
        choices=STORED,
        nargs="+",
        default=["float32"],
        help="precisions that states will be stored in (default float32)",
    )
    one.add_argument(
        "--compute-dtype",
        choices=DTYPES,
        nargs="+",
        default=["float32"],
        help="precisions of the passes that will make them (default float32); every pair of both is measured",
    )
    one.add_argument("--json", action="store_true", help="print a machine-readable report")
    one.set_defaults(command=_prepare)


def prepare(inverter: Inverter, precisions: list[tuple[str, str]]) -> list[Prepared]:
    """The lens, and the tolerances for each (stored, computed) precision: made now unless they are there."""
    from ..engine import tolerance_store
    from ..lens.choose import choose_lens
    from ..lens.store import linear_name
    from ..storage import cache

    decoder, name = inverter.decoder, linear_name(inverter.decoder, 0)
    there, start = cache.path(name) is not None, time.perf_counter()
    lens = choose_lens(decoder, inverter.vocabulary)
    seconds, what = (
        time.perf_counter() - start,
        f"{lens.kind} lens ({100 * lens.accuracy:.1f} % of held-out tokens right)",
    )
    if lens.kind == "learned":  # by `fit`, or shipped
        found = [Prepared(what, FITTED, seconds, None)]
    else:
        source = "the cache" if there else "what the model writes, prose and random tokens"
        found = [Prepared(what, source, seconds, _kept(name))]
    for stored, computed in precisions:
        name = tolerance_store.name(decoder, stored, computed)
        there, start = cache.path(name) is not None, time.perf_counter()
        inverter.calibrate(stored, computed)
        source, seconds = "the cache" if there else "prose and random tokens", time.perf_counter() - start
        found.append(Prepared(f"tolerances ({stored} states, {computed} passes)", source, seconds, _kept(name)))
    return found


def _kept(name: str) -> str | None:
    from ..storage import cache

    path = cache.path(name)
    return None if path is None else str(path)


def _prepare(args: argparse.Namespace) -> int:
    inverter = inverter_of(args, args.layer)
    precisions = [(stored, computed) for computed in args.compute_dtype for stored in args.states_dtype]
    found = prepare(inverter, precisions)
    if args.json:
        say_json([asdict(each) for each in found])
        return 0
    say(f"{inverter.decoder.fingerprint()}, {inverter.decoder.layer.name}")
    from ..storage.cache import kept

    for each in found:
        where = "" if each.source == FITTED else f"; {kept(each.path)}"
        say(f"{each.what} from {each.source}, {each.seconds:.1f} s{where}")
    return 0
