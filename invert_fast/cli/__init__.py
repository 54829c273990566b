"""The command line: `main.py` has the table of commands, each of which is a file with `add` and what runs.

Only what runs imports PyTorch and the parts of ours that need it, so that `--help` answers at once.
"""
