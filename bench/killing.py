"""Commands as processes that are there at once, so that they can be stopped at any moment of what they do.

A server (`multiprocessing`'s) has everything imported and computes nothing; each command is a child that it forks, with
threads, files and signals of its own. What is left out of a run is the import of PyTorch, which writes nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PRELOAD = (
    "invert_fast.cli.main",
    "invert_fast.inverter",
    "invert_fast.intake.files",
    "invert_fast.intake.prompts",
    "invert_fast.lens.train",
    "invert_fast.logits.files",
    "invert_fast.extract.extraction",
    "invert_fast.extract.local",
    "invert_fast.extract.output",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt2.tokenization_gpt2",
    "tqdm",
)
_READY = "ready\n"
# settings of fits that end in seconds and look often: they change how much is computed, not what is written when
_SMALL = {
    "invert_fast.lens.texts": {"_POOL": 24, "_HELD": 8, "_LENGTH": 12, "_TOKENS": 48, "_LONG": 48, "_LONG_POOL": 4},
    "invert_fast.lens.trainer": {"_LOOK": 5, "_CHECKPOINT_SECONDS": 0.05},
    "invert_fast.lens.mixture": {
        "LENGTH": 12,
        "_LEAST": 1024,
        "_A_NUMBER": 4,
        "_SINGLES": 512,
        "_LONG": 48,
        "_KEPT": 16,
    },
    "invert_fast.engine.calibrate": {"_LONG": 32},
    "invert_fast.extract.methods": {"_ROUND": 8},
}


@dataclass(frozen=True)
class Ended:
    """status: of the process, negative for a signal; seconds: since it began to work; said: stdout and stderr."""

    status: int
    seconds: float
    said: str


class Commands:
    """The server. Use it as a context; `folder` is where children write what they say."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))

    def run(self, argv: list[str], cache: Path, stop: int | None = None, after: float = 0.0) -> Ended:
        """One command; stop: the signal it is sent `after` seconds of its work, if it still works then."""
        log = self.folder / "said.txt"
        log.write_text("")
        child = self._context.Process(target=_work, args=(argv, str(cache), str(log)))
        child.start()
        while child.is_alive() and not log.read_text(errors="replace").startswith(_READY):
            time.sleep(0.001)
        start = time.perf_counter()
        if stop is not None:
            child.join(after)
            if child.is_alive() and child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, stop)
        child.join(300)
        if child.is_alive():
            child.kill()
            child.join()
            raise TimeoutError(f"{argv} did not end: {log.read_text(errors='replace')}")
        status, said = child.exitcode, log.read_text(errors="replace").removeprefix(_READY)
        assert status is not None
        return Ended(status, time.perf_counter() - start, said)


def _work(argv: list[str], cache: str, log: str) -> None:
    """In the child: what the console script does."""
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    os.environ |= {"INVERT_FAST_CACHE": cache, "INVERT_FAST_SHARPEN": "off", "TQDM_DISABLE": "1"}
    for name, settings in _SMALL.items():
        for setting, value in settings.items():
            setattr(import_module(name), setting, value)
    to = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(to, 1)
    os.dup2(to, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["invert-fast", *argv]
    from invert_fast.__main__ import run

    os.write(1, _READY.encode())
    run()
