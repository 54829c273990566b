"""`invert-fast logits invert`: file of log-probs → recovered.jsonl. Solved for states, then as `invert-fast invert`."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..logits.recorded import KINDS
from ..storage.atomic import partial_name
from .options import DTYPES, inverter_of, model_options, progress
from .recovering import check_output, inversion_options, left_of, recover, strategy_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.tolerances import Tolerances
    from ..inverter import Inverter
    from ..logits.files import LogitsFile
    from ..logits.recorded import Logits
    from ..logits.solve import Solution
    from ..logits.states import StateSolver

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "invert",
        help="file of log-probs → recovered.jsonl",
        description="Recover the texts whose next-token log-probs or logits these are, one JSON line a text, written "
        "as it is found. At least D + 1 entries a position are needed, D being the width of the model.",
    )
    model_options(one, layer=False)
    one.add_argument("logits", type=Path, help=".safetensors (from `logits capture`, or one [T, V] tensor) or .npy")
    inversion_options(one)
    one.add_argument(
        "--kind", choices=KINDS, help="what the numbers are, if the file is silent (default: told by sums)"
    )
    one.add_argument("--stored-dtype", choices=DTYPES, help="precision they were stored in, if the file is silent")
    one.add_argument("--compute-dtype", choices=DTYPES, help="precision they were computed in, if the file is silent")
    one.set_defaults(command=_invert)


def _invert(args: argparse.Namespace) -> int:
    check_output(args)
    strategy = strategy_of(args)  # before any work
    import torch

    from ..distributed.job import About
    from ..distributed.session import found, identified, settings_of
    from ..logits.files import open_logits
    from ..logits.states import UNEXPLAINED, StateSolver
    from ..storage.states import open_states, write_states

    source = open_logits(args.logits)
    inverter = inverter_of(args, None)
    if args.insist:
        source = replace(source, rows=source.rows.without_model())
    lengths, decoder = source.rows.lengths(), inverter.decoder
    inverter.check_lengths(lengths)
    said = {name: getattr(args, name) or "told by the file" for name in ("kind", "stored_dtype", "compute_dtype")}
    settings = settings_of(decoder, identified(source.rows, "final_norm")[1], str(strategy)) | said
    about = About(lengths, [None], [0], settings, str(decoder.device))
    left = left_of(args, about)
    solver = StateSolver(decoder, 1.0 if args.insist else UNEXPLAINED)
    start = time.perf_counter()
    with _beside(args.output) as folder:
        path, solved, wanted = folder / "states.safetensors", [], set(left.texts)
        rows = _solved(args, source, solver, wanted, solved)
        write_states(path, rows, lengths, decoder.width, torch.float32, {"layer": "final_norm", "dtype": "float32"})
        tolerances, states = _tolerances(args, inverter, source, solver, wanted, solved), open_states(path)
        recovered = inverter.invert_iter(
            ((i, states.states(i, "final_norm")) for i in left.texts),
            strategy,
            lengths=[lengths[i] for i in left.texts],
            batch_size=args.batch_size,
            max_memory=args.max_memory,
            tolerances=tolerances,
        )
        return recover(args, about, left, (found(index, recovery, None) for index, recovery in recovered), start)


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder for what is solved, on the disk of the output; what a kill leaves of it the next run removes."""
    folder = partial_name(output)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record(args: argparse.Namespace, source: LogitsFile, index: int) -> Logits:
    return source.logits(index, args.kind, args.stored_dtype, args.compute_dtype)


def _solved(
    args: argparse.Namespace, source: LogitsFile, solver: StateSolver, wanted: set[int], found: list[Solution]
) -> Iterator[Tensor]:
    """States of each text, zeros for those that need none; what is known of their errors goes to `found`."""
    import torch

    with progress(total=len(wanted), desc="solve", unit="text") as bar:
        for index, length in enumerate(source.rows.lengths()):
            if index not in wanted:
                yield torch.zeros(length, solver.head.width)
                continue
            solution = solver.solve(_record(args, source, index), index)
            yield solution.hidden.float().cpu()
            found.append(replace(solution, hidden=torch.empty(0)))
            bar.update()


def _tolerances(
    args: argparse.Namespace,
    inverter: Inverter,
    source: LogitsFile,
    solver: StateSolver,
    wanted: set[int],
    found: list[Solution],
) -> Tolerances:
    """Calibrated for states of this origin, and said."""
    import torch

    from ..logits.certify import certified_noise

    some = [i for i in wanted if source.rows.lengths()[i]]
    if not some:
        return inverter.calibrate()
    like = _record(args, source, some[0])
    tolerances = certified_noise(solver, inverter.decoder, inverter.vocabulary, like, found)
    misfits = [s.chi for s in found if s.chi is not None and len(s.chi)]
    log.info(
        "%d entries of %d dimensions and a constant; condition %.0f; states are believed to %.1e; %s",
        like.values.shape[1], solver.head.width, max(s.condition for s in found),
        max(float(s.deviation.max()) for s in found if len(s.deviation)), tolerances.describe(),
    )  # fmt: skip
    if misfits and float(torch.cat(misfits).median()) > 2:
        log.warning(
            "the numbers are %.0f times further from any state's than their precision explains: were they computed in "
            "a coarser one (--compute-dtype), or changed? What is certified takes that into account",
            float(torch.cat(misfits).median()),
        )
    return tolerances
