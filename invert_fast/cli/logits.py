"""`invert-fast logits …`: the group of commands; each has a file of its own."""

from __future__ import annotations

import argparse

from . import lmi as lmi_command
from . import logits_capture as capture_command
from . import logits_extract as extract_command
from . import logits_invert as invert_command
from . import logits_search as search_command


def add_logits(commands: argparse._SubParsersAction) -> None:
    """Declare the group: one line here for each `*_command.py`."""
    group = commands.add_parser(
        "logits",
        help="next-token log-probs or logits → text",
        description="Recover texts from what a model says of the next token: exactly where there are enough numbers.",
    )
    commands = group.add_subparsers(required=True, metavar="COMMAND")
    capture_command.add(commands)
    invert_command.add(commands)
    search_command.add(commands)
    extract_command.add(commands)
    lmi_command.add(commands)
