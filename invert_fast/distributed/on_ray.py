"""Ray: a data set of the texts of states files, and a cluster of this machine alone."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..intake.files import files_in, open_source
from ..integrations.needs import RAY
from ..model.layer import Layer
from ..types import InputError
from .batches import FILE, INDEX, TEXT
from .machine import cores

if TYPE_CHECKING:
    from ray.data import Dataset  # type: ignore[import-not-found]  # an extra

_MIB = 1 << 20
_STORE = 80 * _MIB, 512 * _MIB  # bytes of shared memory: what Ray takes at least, and what rows of text ever need
_BLOCKS = 1000
# Of the processes that Ray starts: nothing is sent anywhere, and no bars fill its log.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TQDM_DISABLE": "1"}


def read_states(states: str | Path, tensor: str | None = None, *, texts: int = 16) -> Dataset:
    """A data set with a row a text of a file or folder of states, whatever `invert-fast invert` reads: `index` as it
    counts texts, the file, and the number of the text in that. The actors (`BatchInverter`) read the states themselves:
    their machines need the same path, and nothing of the states passes through Ray's shared memory.

    tensor: which of a file's, as it is given to `BatchInverter` too; texts: in a block, the most that one task is given
    and that is done again when it dies. Raises InputError where there are no states, or Ray is missing.
    """
    data, path = RAY.load("data"), Path(states).resolve()
    import pyarrow as pa  # type: ignore[import-not-found]

    files, numbers = [], []
    for file in files_in(path) if path.is_dir() else [path]:
        count = len(open_source(file, Layer("embeddings", 0), tensor).lengths())
        files += [str(file)] * count
        numbers += range(count)
    indices = pa.array(range(len(files)), pa.int64())
    table = pa.table({INDEX: indices, FILE: pa.array(files, pa.string()), TEXT: pa.array(numbers, pa.int64())})
    size = max(texts, -(-len(table) // _BLOCKS))
    return data.from_arrow([table.slice(at, size) for at in range(0, len(table), size)] or [table])


@contextmanager
def local_ray(cpus: int | None = None, **options: Any) -> Iterator[None]:
    """Ray on this machine alone, for as long as the block runs: without a dashboard and without usage statistics,
    with little shared memory, and no process or file of it is left behind. Ray's own processes listen on all interfaces
    (it has no option for less) and answer those alone that bring its token.

    cpus: how many Ray may count on (None: two more than there are cores, since what reads and writes hardly computes
    and yet waits for a CPU that no actor has); options: more of `ray.init`. Raises InputError where Ray is missing, or
    runs already.
    """
    ray = RAY.load()
    if ray.is_initialized():
        raise InputError("Ray runs in this process already, expected it not to: leave local_ray out, or shut it down")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, _told(_QUIET):
        given = {
            "num_cpus": cpus or cores() + 2,
            "include_dashboard": False,
            "object_store_memory": _shared_memory(),
            "_temp_dir": folder,
            "logging_level": "warning",
        }
        _bring_token()
        try:
            ray.init(**given | options)
            yield
        finally:
            ray.shutdown()


def _bring_token() -> None:
    """What Ray's processes know each other by, from here on: Ray itself would leave one in the home folder."""
    given = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(name in os.environ for name in given) and not Path("~/.ray/auth_token").expanduser().exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _told(variables: dict[str, str]) -> Iterator[None]:
    """With these in the environment, which the processes that start meanwhile have from here."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _shared_memory() -> int:
    """Half of what is free in /dev/shm, within what is of use."""
    least, most = _STORE
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else least
    return max(least, min(most, free // 2))
