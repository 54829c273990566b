"""`invert-fast COMMAND …`: the table of commands, how errors are said, and the exit status.

A command is a file here with `add(commands)`, and a line in `COMMANDS`. Exit status: 0 all certified, 1 some not, 2 bad
input.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..types import InputError
from .interrupts import STATUS, Interrupts, leave
from .options import add_commands
from .outputs import claimed
from .postponed import postpone
from .terminal import Formatter, Parser, complain

COMMANDS = (  # files of this folder, in the order of `--help`
    "demo",
    "capture",
    "prepare",
    "fit",
    "invert",
    "mend",
    "merge",
    "explain",
    "diagnose",
    "defend",
    "audit",
    "figures",
    "logits",
    "score",
    "serve",
    "doctor",
)
log = logging.getLogger("invert_fast")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
    _configure_logging(getattr(args, "verbose", False))
    try:
        with claimed(args):
            return args.command(args)
    except InputError as error:
        complain(str(error))
    except BrokenPipeError:
        raise  # of whoever reads what we print
    except OSError as error:
        complain(_of_the_system(error, args))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        complain(
            f"out of memory ({' '.join(str(error).split())[:100]}): give less at once, or free some; {_left(args)}"
        )
    except KeyboardInterrupt:
        complain(f"interrupted; {_left(args)}")
        return STATUS
    return 2


def _of_the_system(error: OSError, args: argparse.Namespace) -> str:
    """What the system refused, of which file, and what to do."""
    where = error.filename or getattr(args, "output", None) or "file"
    what = f"{where}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{what}: free some space, or write elsewhere; {_left(args)}"
    return f"{what}: check the path and its permissions"


def _out_of_memory(error: BaseException) -> bool:
    """As the engine tells it, without PyTorch, which may not have been imported."""
    named = type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, MemoryError) or "allocate memory" in str(error)


def _left(args: argparse.Namespace) -> str:
    """What a command that was cut short leaves behind."""
    if hasattr(args, "resume"):
        return "what was found is on disk, --resume goes on from there"
    return "no half-written file is left"


def _configure_logging(verbose: bool) -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter("invert-fast: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if "transformers" in sys.modules:
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity_error()
    else:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it looks here when a command imports it


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="invert-fast",
        description="Turn a language model's hidden states back into the exact text, with a "
        "certificate for every token.",
        epilog="Exit status: 0 all certified, 1 some not, 2 usage or bad input.",
    )
    parser.add_argument("--version", action="version", version=f"invert-fast {__version__}")
    add_commands(parser, COMMANDS)
    return parser


def entry() -> None:
    """The console script. A closed pipe downstream is no error of ours."""
    postpone()
    with Interrupts() as interrupts:
        try:
            status = main()
            sys.stdout.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 141
        except BaseException:
            if not interrupts.came:
                raise
            complain("interrupted")  # it came before or behind the command, or as another error
            status = STATUS
    if status == STATUS:
        leave()
    sys.exit(status)
