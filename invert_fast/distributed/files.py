"""`invert_file`: what `invert-fast invert --devices … --workers n` does, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import InputError, Recovery
from .job import Job
from .machine import cuda_devices
from .workers import Workers

if TYPE_CHECKING:
    from ..engine.protocol import Strategy
    from ..model.reading import Reading


def invert_file(
    states: str | Path,
    model: str | Path,
    layer: int | str | None = None,
    devices: Sequence[str] | None = None,
    *,
    dtype: str = "float32",
    strategy: str | Strategy = "auto",
    texts: Sequence[int] | None = None,
    tensor: str | None = None,
    reading: Reading | None = None,
    insist: bool = False,
    states_dtype: str | None = None,
    compute_dtype: str | None = None,
    batch_size: int | None = None,
    max_memory: float | None = None,
) -> Iterator[tuple[int, Recovery]]:
    """`(index, Recovery)` of the texts of a file or folder of states, as each is found, by a process a device.

    states: as `invert-fast invert` takes them; model, layer, dtype: as in `Inverter.from_pretrained` (layer None: the
    file's own, else −1); devices: default all CUDA devices, or cpu; one that is there several times is shared, as in
    ("cpu", "cpu"); texts: these alone; tensor: which of the file's; insist: whatever the file says of its model and
    layer; the rest as in `Inverter.invert_iter`, with max_memory of each device. A script calls it below
    `if __name__ == "__main__":`, since processes are spawned; none is left when the iterator ends or is closed. Raises
    InputError for what cannot be of this model, and, when all else is found, RuntimeError where texts were given up
    since their workers died.
    """
    told = () if reading is None else (reading.position_offset, reading.centered, reading.scale, reading.prefix)
    job = Job(
        Path(states), str(model), layer, dtype, strategy, tensor, told, insist, states_dtype, compute_dtype,
        batch_size, max_memory,
    )  # fmt: skip
    if getattr(strategy, "trace", False):
        raise InputError("traces are not handed from process to process: take Inverter.invert, or leave trace out")
    with Workers(job, devices or cuda_devices() or ["cpu"], as_line=False) as workers:
        lengths = workers.about().lengths
        wanted = range(len(lengths)) if texts is None else set(texts)
        if beyond := [i for i in wanted if not 0 <= i < len(lengths)]:
            raise InputError(f"there is no text {beyond[0]}, {job.states} has texts 0 to {len(lengths) - 1}")
        longest_first = sorted(wanted, key=lambda i: -lengths[i])
        workers.check(longest_first)
        for each in workers.recover(longest_first):
            assert each.recovery is not None
            yield each.index, each.recovery
        if workers.lost:
            index, why = next(iter(sorted(workers.lost.items())))
            raise RuntimeError(
                f"{len(workers.lost)} texts were given up, text {index} among them: {why}; ask for them again (texts=) "
                "with fewer workers, or less at once (batch_size=, max_memory=)"
            )
