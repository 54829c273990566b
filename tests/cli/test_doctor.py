"""`invert-fast doctor` tells of what is there, and of what is broken instead of stumbling over it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import invert_fast
from invert_fast.cli.doctor import words
from invert_fast.cli.main import main
from invert_fast.doctor import examine, probe
from invert_fast.ops import BACKENDS, choose

PACKAGE = Path(invert_fast.__file__).parent


@pytest.fixture(scope="module")
def found() -> dict:
    return examine.examine()


def test_it_tells_what_is_installed_and_used(found):
    import torch

    assert found["invert_fast"]["version"] == invert_fast.__version__
    assert found["packages"]["torch"] == {"version": torch.__version__, "error": None}
    assert all(about["error"] is None for about in found["packages"].values())
    assert found["devices"][0]["name"] == "cpu"
    assert found["backends"]["residuals"]["cpu"] == choose("residuals", "cpu")
    assert found["backends"].keys() == BACKENDS.keys()
    native = pytest.importorskip("invert_fast._C", reason="invert_fast._C was not built: there is no compiler")
    assert found["compiled"]["cpp"]["used"]
    assert found["compiled"]["cpp"]["isas"] == list(native.isas())
    assert found["problems"] == []


def test_it_says_why_something_is_not_used(found):
    if len(found["devices"]) == 1:
        assert found["no_gpu"]
        assert "there is none" in found["compiled"]["triton"]["reason"]
    for about in found["compiled"].values():
        assert about["used"] == (about["reason"] is None)


def test_the_words_have_all_of_it(found):
    text = "\n".join(words(found))
    for part in (found["packages"]["torch"]["version"], "device cpu", "C++ for CPUs", "CUDA C++", "Triton", "cache: "):
        assert part in text
    assert f"cache: {os.environ['INVERT_FAST_CACHE']}" in text
    assert ("nothing is wrong" in text) == (not found["problems"])


def test_the_command_prints_either_and_says_by_its_status_whether_something_is_wrong(found, monkeypatch, capsys):
    monkeypatch.setattr(examine, "examine", lambda: found)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    monkeypatch.setattr(examine, "examine", lambda: {**found, "problems": ["it is broken: mend it"]})
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("PROBLEM: it is broken: mend it\n")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A package whose libraries are no libraries, and a torch that cannot be imported."""
    package = tmp_path / "invert_fast"
    package.mkdir()
    for path in PACKAGE.iterdir():
        if path.suffix not in (".so", ".pyd"):
            (package / path.name).symlink_to(path)
    for name in ("_C", "_cuda"):
        (package / f"{name}.so").write_bytes(b"no library")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: no such file')\n")
    return tmp_path


def run(folder: Path, **variables: str) -> tuple[int, dict]:
    """`invert-fast doctor --json` where `folder` comes first."""
    done = subprocess.run(
        [sys.executable, "-m", "invert_fast", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_a_broken_installation_is_told_of(broken):
    status, found = run(broken, INVERT_FAST_CACHE="off")
    assert status == 1
    assert "libtorch_cpu.so" in found["packages"]["torch"]["error"]
    assert found["packages"]["safetensors"]["error"] is None
    for name in ("cpp", "cuda"):
        assert not found["compiled"][name]["used"]
        assert "cannot be used: ImportError" in found["compiled"][name]["reason"]
    problems = "\n".join(found["problems"])
    assert "torch cannot be imported" in problems
    assert "the C++ for CPUs is not in use" in problems
    assert "the CUDA library is not in use" in problems
    assert found["cache"] == {"path": None, "reason": "INVERT_FAST_CACHE is off"}
    assert list(words(found))


def test_a_library_that_takes_the_process_with_it_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("import os; os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(examine, "PACKAGE", PACKAGE)
    told = examine.probe()
    assert told["numpy"]["error"] == "the process that tries it dies of SIGABRT"
    assert told["torch"]["error"] == "not tried: numpy dies of SIGABRT"
    assert told.keys() == probe.PARTS.keys()


def test_a_library_that_hangs_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("import time; time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(examine, "_LONGEST", 1.0)
    assert examine.probe()["backends"]["error"].startswith("not tried: numpy does not come to an end within 1 s")


def test_the_cache_folder_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path / "cache"))
    told = examine.cache_folder()
    assert (told["files"], told["bytes"], told["writable"], told["reason"]) == (0, 0, True, None)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "lens").write_bytes(bytes(2048))
    assert (examine.cache_folder()["files"], examine.cache_folder()["bytes"]) == (1, 2048)
    monkeypatch.setenv("INVERT_FAST_CACHE", str(tmp_path / "cache" / "lens"))
    assert "cannot be written to" in examine.cache_folder()["reason"]


def test_absent_extras_come_with_their_command(monkeypatch):
    lines = ["torch>=2", "no-such-package>=1; extra == 'odd'", 'numpy ; extra == "odd"', "pytest; extra == 'test'"]
    monkeypatch.setattr(examine.metadata, "requires", lambda _: lines)
    assert examine.extras() == {
        "odd": {
            "packages": ["no-such-package", "numpy"],
            "absent": ["no-such-package"],
            "install": "pip install 'invert_fast[odd]'",
        }
    }
