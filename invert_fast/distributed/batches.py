"""What an actor of a data set's map holds: an `Inverter`, and what was measured for it. Nothing of Ray is imported."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..engine.memory import shared_out
from ..engine.tolerances import Tolerances
from ..intake.files import open_source
from ..inverter import Inverter
from ..model.reading import AS_CAPTURED, Reading
from ..storage.joined import Source
from ..types import InputError, States, coarsest
from .first_use import first_use
from .tables import WHERE, check_names, states_column, texts_of_column, with_recoveries

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-not-found]  # an extra

    from ..engine.protocol import Strategy

INDEX, FILE, TEXT = "index", "states_file", "states_text"  # the last two stand for the states of a text
_SAID = (INDEX, "id", "path", FILE, TEXT)  # columns that say which row an error is of
_OPEN = 16  # files that are kept open


class BatchInverter:
    """For `ray.data.Dataset.map_batches`: tables of states in, the same tables with the recovered texts out.

    A batch is an Arrow table (batch_format="pyarrow"), a text a row: its states in `column` (None: the only one of
    nested floats, or of tensors `[T, D]`), or the file and number that `read_states` writes. Other columns stay,
    that of the states makes way for token_ids, text, certified, status, residual, margin, first_failure,
    forward_tokens, seconds and alternatives, with `prefix` before each name.

    model, layer, device, dtype, reading: of `Inverter.from_pretrained`; strategy, batch_size (lanes at once),
    max_memory (GiB, on the actor's device, of all that share it), states_dtype and compute_dtype: of
    `Inverter.invert_iter`; tensor: which of a file's; insist: whatever a file says of its model and layer; sharing:
    actors that share a device. What the first inversion of a model measures and fits one actor makes, and the others
    read from the cache folder. Raises InputError for states that cannot be of this model, and says of which row.
    """

    def __init__(
        self,
        model: str,
        layer: int | str = -1,
        *,
        column: str | None = None,
        prefix: str = "",
        device: str | None = None,
        dtype: str = "float32",
        reading: Reading = AS_CAPTURED,
        strategy: str | Strategy = "auto",
        tensor: str | None = None,
        insist: bool = False,
        states_dtype: str | None = None,
        compute_dtype: str | None = None,
        batch_size: int | None = None,
        max_memory: float | None = None,
        sharing: int = 1,
    ):
        self.inverter = Inverter.from_pretrained(model, layer, device, dtype, reading=reading)
        self.strategy, self.column, self.prefix, self.insist = strategy, column, prefix, insist
        self.states_dtype, self.compute_dtype = states_dtype, compute_dtype
        self.batch_size, self.max_memory, self.sharing = batch_size, max_memory, sharing
        self._measured: dict[tuple[str, str], Tolerances] = {}
        self._opened = lru_cache(_OPEN)(lambda path: self._open(path, tensor))

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts, rest = self._texts(batch)
        check_names(rest, self.prefix)
        rows = [self._checked(number, text, batch) for number, text in enumerate(texts)]
        self.inverter.check_lengths([*map(len, rows)])
        stored, computed = coarsest(texts)
        stored, computed = self.states_dtype or stored, self.compute_dtype or computed
        found = self.inverter.invert_iter(
            enumerate(rows),
            self.strategy,
            lengths=[*map(len, rows)],
            batch_size=self.batch_size,
            max_memory=shared_out(self.inverter.decoder, self.max_memory, self.sharing),
            states_dtype=stored,
            tolerances=self._tolerances(stored, computed),
        )
        recovered = dict(found)
        return with_recoveries(rest, [recovered[number] for number in range(len(rows))], self.prefix)

    def _texts(self, batch: pa.Table) -> tuple[list[States], pa.Table]:
        """The texts of a batch, and what else it holds."""
        if not hasattr(batch, "column_names"):
            raise InputError(
                f"a batch is a {type(batch).__name__}, expected an Arrow table: map_batches(…, batch_format='pyarrow')"
            )
        layer = self.inverter.decoder.layer.name
        name = states_column(batch, self.column)
        if name is not None:
            return [States(rows, layer) for rows in texts_of_column(batch, name)], batch.drop_columns([name])
        if not {FILE, TEXT} <= {*batch.column_names}:
            raise InputError(
                f"{WHERE} has columns {', '.join(batch.column_names) or 'of no name'}, expected one of states (lists "
                f"of lists of floats, a text a row), or {FILE} and {TEXT} as read_states writes them: name it (column=)"
            )
        where = zip(batch.column(FILE).to_pylist(), batch.column(TEXT).to_pylist(), strict=True)
        return [self._opened(path).states(number, layer) for path, number in where], batch

    def _open(self, path: str, tensor: str | None) -> Source:
        source = open_source(Path(path), self.inverter.decoder.layer, tensor)
        return source.without_model() if self.insist else source

    def _checked(self, number: int, text: States, batch: pa.Table) -> Tensor:
        """The rows of a text in fp32. InputError for what cannot be of the model, with what says which it is."""
        try:
            return self.inverter.checked(number, text)
        except InputError as error:
            there = [name for name in _SAID if name in batch.column_names]
            said = ", ".join(f"{name} {batch.column(name)[number]}" for name in there)
            raise InputError(f"{said}: {error}" if said else f"{WHERE}: {error}") from error

    def _tolerances(self, stored: str, computed: str) -> Tolerances:
        if (stored, computed) not in self._measured:
            self._measured[stored, computed] = first_use(self.inverter, self.strategy, stored, computed)
        return self._measured[stored, computed]
