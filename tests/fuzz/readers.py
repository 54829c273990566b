"""Every reader of files that others wrote: what it is given that is whole, and how it reads that to the end.

A reader gives something, or refuses in words (InputError). The tests here and the targets of `make fuzz` share this.
"""

from __future__ import annotations

import functools
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from invert_fast import Inverter
from invert_fast.engine import tolerance_store
from invert_fast.engine.tolerances import Tolerances
from invert_fast.intake.files import open_source
from invert_fast.lens import store
from invert_fast.lens.base import Lens
from invert_fast.lens.learned import LearnedLens
from invert_fast.logits.files import open_logits
from invert_fast.model.layer import Layer
from invert_fast.storage import cache, checkpoint, shards
from invert_fast.storage.contents import read_safetensors
from invert_fast.storage.prompts import read_chats
from invert_fast.storage.recovered import read_recovered, resume
from invert_fast.storage.states import states_in

from ..families import build

WIDTH, LENGTHS = 8, [3, 0, 4]
ROWS = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0))
BATCH = torch.stack([ROWS[:3], ROWS[3:6]])
MASK = torch.tensor([[1, 1, 0], [0, 1, 1]])
_LAYER = Layer(1, 2)


@dataclass
class Reader:
    """name: of the file that it reads; make: the bytes of one that is whole; read: all of it, or InputError."""

    name: str
    make: Callable[[], bytes]
    read: Callable[[Path], object]

    @functools.cached_property
    def whole(self) -> bytes:
        """Always the same: the library that writes safetensors puts what is said of them in any order."""
        data = self.make()
        size = int.from_bytes(data[:8], "little")
        if data[8:9] != b"{" or size > len(data) - 8:
            return data
        text = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _states(path: Path) -> None:
    source = open_source(path, _LAYER)
    source.check_finite()
    source.head("block:0")
    found = [source.states(i, "block:0").hidden for i in range(len(source.lengths()))]
    assert [*map(len, found)] == source.lengths()


def _logits(path: Path) -> None:
    file = open_logits(path)
    for index in range(len(file)):
        file.logits(index)


def _body(path: Path) -> None:
    file = states_in(read_safetensors(path.read_bytes(), "the body"))
    file.check_finite()
    for start, stop in file.spans:
        assert len(file.rows(start, stop)) == stop - start


def _results(path: Path) -> None:
    before = path.read_bytes()
    for row in read_recovered(path):
        assert isinstance(row["index"], int)
    resume(path, [3, None, 2])
    assert before.startswith(path.read_bytes()), "what is cut off is the last line alone"


@functools.cache
def _small() -> tuple[Inverter, Lens]:
    """A model of hardly any numbers, and a lens of as few, fitted to nothing."""
    inverter = Inverter(build("gpt2", vocab=24, width=16, blocks=1))
    D, zeros = inverter.decoder.width, torch.zeros
    project = {"first": D + 1, "rest": 2 * D + 1, "change": D}
    parts = {name: (zeros(inputs, D), torch.eye(D)) for name, inputs in project.items()}
    linear = store.LinearLens(inverter.vocabulary, parts)
    linear.accuracy = 0.5
    return inverter, linear


@contextmanager
def _cached(path: Path, name: str) -> Iterator[None]:
    """As that entry of a cache folder."""
    before = os.environ.get("INVERT_FAST_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INVERT_FAST_CACHE"] = folder
        try:
            (Path(folder) / name).write_bytes(path.read_bytes())
            yield
            assert [p.name for p in Path(folder).iterdir()] == [name]
        finally:
            if before is None:
                del os.environ["INVERT_FAST_CACHE"]
            else:
                os.environ["INVERT_FAST_CACHE"] = before


def _learned() -> bytes:
    inverter, linear = _small()
    lens = LearnedLens(linear, 8, 1)
    return store.write_learned(lens, inverter.decoder, {})


def _read_learned(path: Path) -> None:
    inverter, _ = _small()
    with _cached(path, store.learned_name(inverter.decoder, "any")):
        store.learned_lens(inverter.decoder, inverter.vocabulary)


def _linear() -> bytes:
    _, linear = _small()
    about = {"format": "linear", "prior": {}, "used": 0, "rank": None}
    return save(store._linear_tensors(linear), metadata=store._about(linear, about))


def _read_linear(path: Path) -> None:
    inverter, _ = _small()
    read = functools.partial(store._read_linear, decoder=inverter.decoder, vocabulary=inverter.vocabulary)
    store.read_or_warn(path, read, "fitting it again")


def _tolerances() -> bytes:
    written: list[bytes] = []
    write = cache.write
    try:
        cache.write = lambda name, data: written.append(data)
        tolerance_store.write("t", Tolerances(**dict.fromkeys(_PAIRS, (0.5, 0.5))))  # type: ignore[arg-type]
    finally:
        cache.write = write
    return written[0]


_PAIRS = [name for name in Tolerances.__dataclass_fields__ if name != "metric"]


def _read_tolerances(path: Path) -> None:
    with _cached(path, "t"):
        tolerance_store.read("t", _small()[0].decoder)


def _read_checkpoint(path: Path) -> None:
    try:
        checkpoint.read(path)
    except (SafetensorError, OSError, KeyError, ValueError):  # as it says of itself
        return


def _note() -> bytes:
    whole = shards.Whole(1, 1, 3, "0")
    shard = shards.Shard(1, 1, 1, {"model": "m"}, whole)
    return json.dumps({"format": shards.FORMAT, **shards.asdict(shard)}).encode()


def _read_note(path: Path) -> None:
    output = path.with_name(path.name.removesuffix(shards.SUFFIX))
    output.write_bytes(b"{}\n")
    try:
        shards.check([output])
    finally:
        output.unlink()


def _saved(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _table(texts: bool = True) -> pa.Table:
    rows = [ROWS[:3].tolist(), ROWS[3:].tolist()] if texts else ROWS.tolist()
    kind = pa.list_(pa.list_(pa.float32())) if texts else pa.list_(pa.float32())
    return pa.table({"hidden": pa.array(rows, kind)})


def _ipc(new: Callable, **options) -> Callable[[], bytes]:
    def write() -> bytes:
        sink, table = pa.BufferOutputStream(), _table()
        with new(sink, table.schema, **options) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    return write


_OFFSETS = torch.tensor([0, 3, 3, 7])
_SAID = {"layer": "block:0", "dtype": "float32", "model": "m:0", "format": "invert_fast-states-1"}
_CODES = {"hidden": torch.ones(7, WIDTH, dtype=torch.int8), "hidden_scale": torch.ones(7), "offsets": _OFFSETS}
_LOGITS = {"values": ROWS, "offsets": _OFFSETS, "ids": torch.arange(7 * WIDTH).view(7, WIDTH)}
_LINE = {"index": 0, "token_ids": [1, 2, 3], "text": "a", "status": ["certified"] * 3}
_ARRAYS = {"states": BATCH.numpy(), "attention_mask": MASK.numpy()}
_PROMPTS = b'{"text": "a \\ud83d\\ude00"}\n"b"\n{"messages": [{"role": "user", "content": "c"}]}\n'
_RESULTS = "".join(json.dumps({**_LINE, "index": i, "token_ids": [1] * n}) + "\n" for i, n in ((0, 3), (2, 2))).encode()
_PACKED = pa.ipc.IpcWriteOptions(compression="lz4")

READERS = {
    reader.name: reader
    for reader in (
        Reader("ours.safetensors", lambda: save({"hidden": ROWS, "offsets": _OFFSETS}, _SAID), _states),
        Reader("batch.safetensors", lambda: save({"h": BATCH, "attention_mask": MASK}), _states),
        Reader("codes.safetensors", lambda: save(_CODES), _states),
        Reader("body.bin", lambda: save({"hidden": ROWS, "offsets": _OFFSETS}, _SAID), _body),
        Reader("logits.safetensors", lambda: save(_LOGITS, {"kind": "log_probs"}), _logits),
        Reader("rows.npy", lambda: _saved(lambda f: np.save(f, ROWS.numpy())), _states),
        Reader("batch.npz", lambda: _saved(lambda f: np.savez(f, **_ARRAYS)), _states),
        Reader("packed.npz", lambda: _saved(lambda f: np.savez_compressed(f, **_ARRAYS)), _states),
        Reader("batch.pt", lambda: _saved(lambda f: torch.save({"h": BATCH, "attention_mask": MASK}, f)), _states),
        Reader("list.pt", lambda: _saved(lambda f: torch.save([ROWS[:3], ROWS[3:]], f)), _states),
        Reader(
            "old.pt", lambda: _saved(lambda f: torch.save([ROWS], f, _use_new_zipfile_serialization=False)), _states
        ),
        Reader("texts.parquet", lambda: _saved(lambda f: pa.parquet.write_table(_table(), f)), _states),
        Reader("rows.parquet", lambda: _saved(lambda f: pa.parquet.write_table(_table(False), f)), _states),
        Reader("texts.arrow", _ipc(pa.ipc.new_file), _states),
        Reader("stream.arrow", _ipc(pa.ipc.new_stream), _states),
        Reader("packed.feather", _ipc(pa.ipc.new_file, options=_PACKED), _states),
        Reader("prompts.jsonl", lambda: _PROMPTS, lambda path: read_chats(path)),
        Reader("prompts.txt", lambda: b"one\r\n\nthr\x0cee", lambda path: read_chats(path)),
        Reader("recovered.jsonl", lambda: _RESULTS, _results),
        Reader(f"o.jsonl{shards.SUFFIX}", _note, _read_note),
        Reader("learned.lens", _learned, _read_learned),
        Reader("linear.lens", _linear, _read_linear),
        Reader("tolerances", _tolerances, _read_tolerances),
        Reader("checkpoint", lambda: checkpoint.as_bytes({"a": ROWS}, {"step": 1}), _read_checkpoint),
    )
}
