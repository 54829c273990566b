"""What a few bytes say of sizes is not believed: no memory, time or files by an attacker's number."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from invert_fast import InputError
from invert_fast.intake.files import open_source
from invert_fast.lens import store
from invert_fast.model.layer import Layer
from invert_fast.model.load import load
from invert_fast.storage import arrow, shards

from ..conftest import TimeLimit
from ..families import build
from ..memory import memory_limit, needs_limits
from .readers import READERS, _cached, _small

pytestmark = needs_limits
HUGE = 1 << 40


def empty(*shape: int) -> Callable[[Path], None]:
    """A tensor of no numbers, and so of no bytes."""

    def write(path: Path) -> None:
        text = json.dumps({"hidden": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)

    return write


def packed(path: Path) -> None:
    torch.save(torch.zeros(1 << 20, 8), path)
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def within_itself(path: Path) -> None:
    lists: list[Any] = []
    lists.append(lists)
    torch.save(lists, path)


def again_and_again(path: Path) -> None:
    lists: list[Any] = [torch.zeros(2, 8)] * 100
    for _ in range(5):
        lists = [lists] * 100
    torch.save(lists, path)


def deep(path: Path) -> None:
    lists: Any = torch.zeros(2, 8)
    for _ in range(100):
        lists = [lists]
    torch.save(lists, path)


FILES = {
    "rows.safetensors": (empty(HUGE, 0), "no numbers"),
    "texts.safetensors": (empty(HUGE, 0, 8), "no numbers"),
    "narrow.safetensors": (empty(HUGE, 5, 0), "no numbers"),
    "rows.npy": (lambda p: np.save(p, np.lib.stride_tricks.as_strided(np.zeros(0, "f4"), (HUGE, 0), (0, 0))), "no num"),
    "expanded.pt": (lambda p: torch.save(torch.zeros(1, 8).expand(HUGE, 8), p), "expanded"),
    "packed.pt": (packed, "packed"),
    "sparse.pt": (lambda p: torch.save(torch.eye(8).to_sparse(), p), "sparse"),
    "itself.pt": (within_itself, "beyond measure"),
    "again.pt": (again_and_again, "beyond measure"),
    "deep.pt": (deep, "beyond measure"),
}


@pytest.mark.parametrize("name", FILES)
def test_states_files(name, tmp_path, time_limit: TimeLimit):
    write, words = FILES[name]
    write(tmp_path / name)
    with memory_limit(), time_limit(20), pytest.raises(InputError, match=words):
        open_source(tmp_path / name, Layer(1, 2)).check_finite()


def test_an_expanded_mask_is_none_of_that(tmp_path):
    torch.save({"h": torch.ones(2, 3, 8), "attention_mask": torch.ones(1, 3).long().expand(2, 3)}, tmp_path / "a.pt")
    assert open_source(tmp_path / "a.pt", Layer(1, 2)).lengths() == [3, 3]


def test_columns_that_a_few_bytes_stand_for(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"h": pa.array([[1.0] * 8] * 20_000, pa.list_(pa.float32()))}), path)
    assert path.stat().st_size < 20_000
    assert open_source(path, Layer(1, 2)).lengths() == [20_000]
    monkeypatch.setattr(arrow, "BOMB", (10, 1 << 20))
    with pytest.raises(InputError, match="would unpack"):
        open_source(path, Layer(1, 2))


def test_a_note_of_a_run_of_any_number_of_shards(tmp_path, time_limit: TimeLimit):
    output = tmp_path / "o.jsonl"
    output.write_text("{}\n")
    for numbers in ({"parts": 1 << 50}, {"texts": 10**30}):
        said = {**json.loads(READERS[f"o.jsonl{shards.SUFFIX}"].whole), **numbers}
        shards.note_of(output).write_text(json.dumps(said))
        with memory_limit(), time_limit(20), pytest.raises(InputError, match="damaged"):
            shards.check([output])


def test_a_lens_that_says_it_is_larger_than_its_tensors(tmp_path, caplog, time_limit: TimeLimit):
    inverter, _ = _small()
    path = tmp_path / "lens"
    path.write_bytes(READERS["learned.lens"].whole)
    with safe_open(path, "pt") as file:
        about, tensors = json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(save(tensors, {"about": json.dumps({**about, "width": 4096, "layers": 64})}))
    with _cached(path, store.learned_name(inverter.decoder, "any")), memory_limit(), time_limit(20):
        assert store.learned_lens(inverter.decoder, inverter.vocabulary) is None
    assert "not in its tensors" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


CONFIGS = {
    "n_layer": 10**9,
    "n_head": 10**12,
    "num_labels": 10**9,
    "n_embd": 1 << 20,
    "vocab_size": 1 << 40,
    "n_positions": 1 << 40,
    "n_inner": 1 << 40,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build("gpt2", vocab=24, width=16, blocks=1).save_pretrained(path)
    return path


@pytest.mark.parametrize("key", CONFIGS)
def test_a_config_that_asks_for_more_than_there_are_weights(folder, key, monkeypatch, time_limit: TimeLimit):
    path = folder / "config.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(whole), key: CONFIGS[key]}))
        with memory_limit(), time_limit(30), pytest.raises(InputError) as error:
            load(folder)
    finally:
        path.write_text(whole)
    assert "config" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside.safetensors"])
def test_an_index_that_names_files_outside_of_its_folder(tmp_path, name):
    build("gpt2", vocab=24, width=16, blocks=1).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "another.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="in this folder"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_config_that_is_no_config(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="JSON"):
        load(tmp_path)
