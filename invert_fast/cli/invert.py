"""`invert-fast invert`: states file → recovered.jsonl, in this process or in several."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from time import perf_counter

from ..distributed.job import Job
from ..types import InputError
from .options import (
    COMPUTED,
    STORED,
    devices,
    loading,
    model_options,
    noise,
    positive,
    reading_options,
    reading_told,
    states_arguments,
)
from .recovering import check_output, inversion_options, left_of, recover, strategy_of

log = logging.getLogger("invert_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command and its options."""
    one = commands.add_parser(
        "invert",
        help="states file → recovered.jsonl",
        description="Recover the texts of a states file, one JSON line a text: written as it is found, and put in the "
        "order of the texts when all are.",
    )
    model_options(one)
    one.add_argument(
        "--devices",
        type=devices,
        metavar="D,D",
        help="a process a device, which share the texts: cuda:0,cuda:1 or `all` CUDA devices (--max-memory is then of "
        "each)",
    )
    one.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="so many processes, shared out among the devices; they divide the threads of the processor",
    )
    states_arguments(one)
    inversion_options(one)
    reading_options(one)
    one.add_argument(
        "--states-dtype", choices=STORED, help="precision the states were stored in, if the file is silent"
    )
    one.add_argument("--compute-dtype", choices=COMPUTED, help="precision they were computed in, if the file is silent")
    one.add_argument(
        "--noise",
        type=noise,
        metavar="KIND:SIGMA",
        help="noise in the states: gaussian:0.05 or laplacian:0.05, over the root mean square of each row, "
        "gaussian:0.02:absolute in their units, or `auto` to estimate it (default: the file's); --strategy auto is "
        "then beam",
    )
    one.set_defaults(command=_invert)


def _invert(args: argparse.Namespace) -> int:
    check_output(args)
    places = _places(args)
    job = Job(
        args.states,
        args.model,
        args.layer,
        args.dtype,
        strategy_of(args),
        args.tensor,
        reading_told(args),
        args.insist,
        args.states_dtype,
        args.compute_dtype,
        args.batch_size,
        args.max_memory,
        args.noise,
    )
    status = _in_one(args, job, places[0]) if len(places) == 1 else _in_several(args, job, places)
    if status:
        log.warning(
            "if the model is the right one: `invert-fast diagnose --model %s %s` tries what may have happened to the "
            "states, and names the option that undoes it",
            args.model,
            args.states,
        )
    return status


def _in_one(args: argparse.Namespace, job: Job, device: str | None) -> int:
    """In this process."""
    with loading():
        from ..distributed.session import Session

        session = Session(job, device)
    about = session.about()
    left = left_of(args, about)
    session.check(left.texts if len(left.texts) < len(about.lengths) else None)
    start = perf_counter()
    if left.texts:
        session.prepare()
    lengths = [about.lengths[i] for i in left.texts]
    return recover(args, about, left, session.recover(left.texts, lengths), start)


def _in_several(args: argparse.Namespace, job: Job, places: list[str | None]) -> int:
    """In a process a place."""
    from ..distributed.workers import Workers

    with Workers(job, places) as workers:
        about = replace(workers.about(), device=", ".join(dict.fromkeys(place or "default" for place in places)))
        left = left_of(args, about)
        workers.check(left.texts)
        start = perf_counter()
        return recover(args, about, left, workers.recover(left.texts), start, workers.lost)


def _places(args: argparse.Namespace) -> list[str | None]:
    """The device of each process."""
    if args.devices and args.device:
        raise InputError(f"--device {args.device} and --devices were both given, expected one of them: leave one out")
    named: list[str | None] = [*args.devices] if args.devices else [args.device]
    if named == ["all"]:
        from ..distributed.machine import cuda_devices

        named = [*cuda_devices()]
        if not named:
            raise InputError("--devices all: this machine, or its PyTorch, has no CUDA device: leave it out for cpu")
    count = args.workers or len(named)
    if count < len(named):
        raise InputError(f"--workers {count} are fewer than {len(named)} devices, expected one a device at least")
    return [named[k % len(named)] for k in range(count)]
