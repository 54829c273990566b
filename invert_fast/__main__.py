"""`python -m invert_fast`, and the console script. What it imports first is what an interrupt could still disturb."""

from __future__ import annotations


def run() -> None:
    """One command; ends the process with its exit status."""
    try:
        from .cli.main import entry
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    entry()


if __name__ == "__main__":
    run()
