"""`invert-fast logits COMMAND …`: the table of its commands; each has a file of its own."""

from __future__ import annotations

import argparse

from .options import add_commands

COMMANDS = (
    "logits_capture",
    "logits_invert",
    "logits_search",
    "logits_extract",
    "lmi",
)


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the group."""
    group = commands.add_parser(
        "logits",
        help="next-token log-probs or logits → text",
        description="Recover texts from what a model says of the next token: exactly where there are enough numbers.",
    )
    add_commands(group, COMMANDS)
