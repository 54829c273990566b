"""Ray Data: the example of docs/scale.md, while one of its workers is killed; and Parquet, as Ray hands it over."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from invert_fast.integrations.needs import RAY

from ..distributed.states import TEXTS, captured
from .needed import needed
from .page import ROOT

needed(RAY)
CODE = re.findall(r"```python\n(import ray\n.*?)```", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.DOTALL)[0]

# The actors of the example, but that the first to have text 7 is killed when it has recovered it and told nobody. What
# they leave: a line a batch, and the processes that Ray has then.
MORTAL = '''
import os, signal
from pathlib import Path
from invert_fast.distributed import BatchInverter as Immortal

def others():
    """All processes that the example has started, itself left out."""
    parent = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    def above(pid):
        while pid := parent.get(pid):
            yield pid
    (driver,) = (p for p in above(os.getpid()) if b"example.py" in Path(f"/proc/{p}/cmdline").read_bytes())
    return [pid for pid in parent if driver in above(pid)]

class BatchInverter(Immortal):
    def __call__(self, batch):
        found = super().__call__(batch)
        with open("/".join([os.environ["MORTAL"], str(os.getpid())]), "a") as file:
            print(batch.column("index").to_pylist(), file=file)
        if 7 in batch.column("index").to_pylist():
            try:
                with open(os.environ["MORTAL"] + "/killed", "x") as file:
                    print(os.getpid(), *others(), file=file)
            except FileExistsError:
                return found
            os.kill(os.getpid(), signal.SIGKILL)
        return found
'''
# Then: nested lists through a file of Parquet, inverted in this process, and tensors, as Ray keeps them itself.
PARQUET = """
import numpy as np, pyarrow as pa, pyarrow.parquet
from invert_fast.storage.states import open_states

opened = open_states(__import__("pathlib").Path("states.safetensors"))
rows = [opened.states(i, -1).hidden.numpy() for i in range(4)]
pa.parquet.write_table(pa.table({"id": list("abcd"), "acts": [row.tolist() for row in rows]}), "states.parquet")
inverting = Immortal("bundled")
with local_ray(cpus=2):
    (batch,) = ray.data.read_parquet("states.parquet").iter_batches(batch_size=None, batch_format="pyarrow")
    ray.data.from_arrow(inverting(batch)).write_parquet("again")
    print(ray.data.read_parquet("again").sort("id").to_pandas()["text"].tolist())
    for tensors in (rows, [row[:4] for row in rows]):
        (batch,) = ray.data.from_items([{"acts": t} for t in tensors]).iter_batches(batch_format="pyarrow")
        print(inverting(batch).column("certified").to_pylist())
try:
    with local_ray(), local_ray():
        pass
except Exception as error:
    print(type(error).__name__, error)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc: what is left cannot be looked for")
def test_the_example_loses_and_doubles_nothing_when_a_worker_is_killed(apart, folder, monkeypatch):
    captured(folder)
    (folder / "mortal.py").write_text(MORTAL)
    (folder / "told").mkdir()
    monkeypatch.setenv("MORTAL", str(folder / "told"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else what runs beside this test keeps it waiting
    ours = "from invert_fast.distributed import BatchInverter, "
    assert ours in CODE
    code = CODE.replace(ours, "from mortal import BatchInverter, Immortal\nfrom invert_fast.distributed import ")
    said = apart(code + PARQUET, folder)
    lines = [json.loads(line) for file in folder.glob("recovered/*.json") for line in file.read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == [*range(len(TEXTS))], "nothing lost, nothing doubled"
    assert all(line["text"] == TEXTS[line["index"]] and line["certified"] for line in lines)
    assert {line["states_file"] for line in lines} == {str(folder / "states.safetensors")}
    victim, *processes = map(int, (folder / "told" / "killed").read_text().split())
    told = {int(file.name): file.read_text().splitlines() for file in (folder / "told").glob("[0-9]*")}
    again = told[victim][-1]
    assert [pid for pid, batches in told.items() if again in batches and pid != victim], "it was done again"
    assert len(processes) >= 4, "the actors, and what Ray runs beside them"
    deadline = time.monotonic() + 30
    while (left := [pid for pid in processes if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    texts, *certified, error = said.splitlines()[-4:]
    assert texts == str(TEXTS[:4])
    assert certified == [str([True] * 4)] * 2
    assert error.startswith("InputError Ray runs in this process already")
    assert not (folder / ".ray").exists()
