"""What is postponed is read when it is asked for, and is then what it always was; an inversion asks for none of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from invert_fast import Inverter
from invert_fast.cli.postponed import Postponing

PACKAGE = """
import sys, time
time.sleep(0.05)
times_read = globals().get("times_read", 0) + 1
def __getattr__(name):
    if name == "made":
        return "by the package"
    raise AttributeError(name)
from . import inner
"""
INNER = "value = 7\n"
BOUND = "from . import times_read\n"
REPLACED = """
import sys
from types import SimpleNamespace
sys.modules[__name__] = SimpleNamespace(value=9)  # as transformers does
"""
BROKEN = "raise RuntimeError('not today')\n"
ENTRY = """
import atexit, sys
from invert_fast.cli.main import entry
atexit.register(lambda: print(*sys.modules))
entry()
"""
COMPILER = """
import sys
from invert_fast.cli.postponed import postpone
postpone()
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.import_utils import is_torch_distributed_available
assert "torch._dynamo.eval_frame" not in sys.modules and "sympy" not in sys.modules
assert not is_torch_distributed_available()
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)).eval()
torch.optim.SGD(model.parameters(), 0.1).step()
plain = model(torch.arange(6)[None]).logits
assert "torch._dynamo.eval_frame" not in sys.modules
hidden, graphs = torch.compiler.disable(lambda x: x + 1), []
assert hidden(1) == 2
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
@torch.compile(backend=backend)
def compiled(x):
    return hidden(x.sin() + 1).cos()
x = torch.arange(4.0)
assert torch.equal(compiled(x), (x.sin() + 2).cos())
assert len(graphs) == 2  # what is hidden stands between them
assert torch._dynamo.__spec__.loader.__class__.__name__ == "SourceFileLoader"
import transformers
assert transformers.models.gpt2.GPT2Config is GPT2Config
print("as ever")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that is postponed, with what is in it."""
    name = "postponed_for_a_test"
    (tmp_path / name).mkdir()
    files = {"__init__": PACKAGE, "inner": INNER, "bound": BOUND, "replaced": REPLACED, "broken": BROKEN}
    for file, text in files.items():
        (tmp_path / name / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {name: {f"{name}.inner", f"{name}.replaced", f"{name}.broken"}}
    names |= {f"{name}.replaced": None, f"{name}.broken": None}
    monkeypatch.setattr(sys, "meta_path", [Postponing(names), *sys.meta_path])
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_what_is_in_it_is_imported_without_it(package):
    late = import_module(package)
    assert import_module(f"{package}.inner").value == 7
    assert "times_read" not in vars(late)
    assert late.times_read == 1
    assert late.inner.value == 7
    assert late.made == "by the package"


def test_what_may_need_it_has_it_read_first(package):
    late = import_module(package)
    assert import_module(f"{package}.bound").times_read == vars(late)["times_read"] == 1


def test_it_is_read_once_by_whoever_comes_first(package):
    late, found = import_module(package), []
    threads = [threading.Thread(target=lambda: found.append(late.times_read)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4
    with pytest.raises(AttributeError):
        late.missing  # noqa: B018


def test_one_that_puts_another_in_its_place_is_asked_there(package):
    module = import_module(f"{package}.replaced")
    assert module.value == 9
    assert module.value == import_module(package).replaced.value == import_module(f"{package}.replaced").value == 9


def test_what_cannot_be_read_says_so_each_time(package):
    late = import_module(f"{package}.broken")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not today"):
            late.anything  # noqa: B018


def test_whoever_compiles_gets_the_compiler():
    done = subprocess.run([sys.executable, "-c", COMPILER], capture_output=True, text=True, check=False)
    assert done.stdout == "as ever\n", done.stderr[-3000:]


def test_an_inversion_reads_neither_compiler_nor_sympy(tmp_path):
    text, states, found = "The tea is cold.", tmp_path / "states.npy", tmp_path / "found.jsonl"
    inverter = Inverter.from_pretrained("bundled", device="cpu")
    np.save(states, inverter.capture([text])[0].hidden.numpy())
    inverter.calibrate()
    command = [sys.executable, "-c", ENTRY, "invert", "--model", "bundled", str(states), "--output", str(found)]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(found.read_text())["text"] == text
    imported = set(done.stdout.splitlines()[-1].split())
    assert {"torch", "transformers", "torch._dynamo"} <= imported
    assert not imported & {"torch._dynamo.eval_frame", "torch._inductor", "torch.distributed.tensor", "sympy"}
