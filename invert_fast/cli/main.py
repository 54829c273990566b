"""`invert-fast COMMAND …`: the table of commands, how errors are said, and the exit status.

A command is a file here with `add(commands)`, and a line in `COMMANDS`. Exit status: 0 all certified, 1 some not, 2 bad
input.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..types import InputError
from .options import add_commands
from .terminal import Formatter, Parser, complain

COMMANDS = (  # files of this folder, in the order of `--help`
    "demo",
    "capture",
    "prepare",
    "fit",
    "invert",
    "diagnose",
    "logits",
    "score",
)
log = logging.getLogger("invert_fast")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
    _configure_logging()
    try:
        return args.command(args)
    except InputError as error:
        complain(str(error))
    except OSError as error:
        complain(f"{error.filename or 'file'}: {error.strerror or error}: check the path and its permissions")
    except KeyboardInterrupt:
        complain("interrupted; what was found is on disk, --resume goes on from there")
        return 130
    return 2


def _configure_logging() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Formatter("invert-fast: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
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
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status)
