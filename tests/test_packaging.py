"""What an install promises: which names exist, which extensions are built, and what happens where they cannot be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the build files around a package of empty modules."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "csrc", root / "csrc")
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "LICENSE"):
        shutil.copy(ROOT / name, root)
    stubs = ["README.md", "invert_fast/__init__.py", "invert_fast/strategies/__init__.py", "kernels/__init__.py"]
    for name in [*stubs, "invert_fast/bundled/model.safetensors", "invert_fast/bundled/notes.bak"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def setup_py(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py; unless `variables` say otherwise, with neither a C++ compiler nor nvcc."""
    missing = {"CXX": "/nonexistent/c++", "CUDACXX": "/nonexistent/nvcc", "INVERT_FAST_CUDA": "auto"}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=project,
        env=os.environ | missing | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def failing_tools(project: Path) -> dict[str, str]:
    """Compilers and a CMake that are found and fail, so that the tests need no real ones."""
    (project / "pybind11.py").write_text("def get_cmake_dir(): return ''")
    tools = project / "tools"
    tools.mkdir()
    for name in ("c++", "nvcc", "cmake"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    return {"PATH": path, "CXX": str(tools / "c++"), "CUDACXX": str(tools / "nvcc")}


def warnings_of(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if "invert_fast is installed without" in line]


def python(code: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_kernels_exists_only_below_invert_fast(tmp_path):
    # A `kernels` of ours would be taken for the package of that name that transformers looks for.
    found = python("import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else '')", tmp_path)
    assert not found or not Path(found).is_relative_to(ROOT)
    assert python("import invert_fast.kernels as k; print(k.__name__)", tmp_path) == "invert_fast.kernels"


def test_without_a_compiler_the_package_installs_with_one_warning(project):
    run = setup_py(project, "build", "--build-lib", "lib")
    assert run.returncode == 0, run.stderr
    (warning,) = warnings_of(run)
    assert "invert_fast._C (no C++ compiler found (tried /nonexistent/c++; set CXX))" in warning
    files = (path for path in (project / "lib").rglob("*") if path.is_file())
    installed = {path.relative_to(project / "lib").as_posix() for path in files}
    assert installed == {
        "invert_fast/__init__.py",
        "invert_fast/bundled/model.safetensors",
        "invert_fast/kernels/__init__.py",
        "invert_fast/strategies/__init__.py",
    }


def test_a_failing_compiler_costs_the_extensions_and_one_warning(project):
    run = setup_py(project, "build", "--build-lib", "lib", **failing_tools(project))
    assert run.returncode == 0, run.stderr
    (warning,) = warnings_of(run)
    assert "invert_fast._C (compiling _C failed" in warning
    assert "invert_fast._cuda (compiling _cuda failed" in warning
    assert not [*project.rglob("*.so")]


def test_nothing_is_compiled_for_the_machine_that_compiles():
    """A wheel runs on other processors: which vectors are used is chosen when the library is loaded."""
    for name in ("CMakeLists.txt", "setup.py"):
        flags = re.findall(r"-m(?:arch|tune|cpu|avx|fma|sse)\S*|-x[A-Z]\S*|/arch:\S*", (ROOT / name).read_text("utf-8"))
        assert flags == [], name


def test_an_extension_that_is_no_longer_built_is_not_left_behind(project):
    suffix = python("import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))", project)
    old = [project / f"invert_fast/{name}{suffix}" for name in ("_C", "_cuda")]
    for library in old:
        library.touch()
    assert setup_py(project, "build_ext", "--inplace").returncode == 0
    assert not any(library.exists() for library in old)


def test_unknown_cuda_mode_is_refused(project):
    run = setup_py(project, "--version", INVERT_FAST_CUDA="maybe")
    assert run.returncode != 0
    assert "INVERT_FAST_CUDA='maybe' is unknown: set it to one of auto, on, off" in run.stderr


def test_required_cuda_without_nvcc_is_refused(project):
    run = setup_py(project, "--version", INVERT_FAST_CUDA="on")
    assert run.returncode != 0
    assert "no nvcc was found: set CUDA_HOME or CUDACXX" in run.stderr


def test_required_cuda_that_does_not_compile_is_an_error(project):
    run = setup_py(project, "build_ext", INVERT_FAST_CUDA="on", **failing_tools(project))
    assert run.returncode != 0
    assert "invert_fast._cuda is required (INVERT_FAST_CUDA=on)" in run.stderr


def test_cuda_module_imports_without_a_driver():
    cuda = pytest.importorskip("invert_fast._cuda", reason="invert_fast._cuda is not built (INVERT_FAST_CUDA, nvcc)")
    assert cuda.device_count() >= 0
    assert cuda.architectures()
    if cuda.device_count() == 0:
        with pytest.raises(RuntimeError, match="CUDA"):
            cuda.residuals(16, 16, 16, 1, 1, 1, 1, 1, 1, False, False, 0)


def constraints() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    parsed = map(Requirement, lines)
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in parsed}


def test_constraints_are_exact():
    pins = constraints()
    assert pins["torch"] == "==2.13.0"
    loose = {name for name, pin in pins.items() if not re.fullmatch(r"==[0-9.]+", pin)}
    assert loose == {"triton"}, "only triton is a range: torch's CUDA wheels choose its version"


def test_constraints_cover_everything_that_an_install_brings():
    pending, seen = ["invert-fast"], set()
    while pending:
        name = canonicalize_name(pending.pop())
        if name in seen or name.startswith(("nvidia-", "cuda-")):  # torch's CUDA wheels pin these themselves
            continue
        seen.add(name)
        extra = "test" if name == "invert-fast" else ""
        requirements = map(Requirement, metadata.requires(name) or [])
        pending += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert seen - {"invert-fast"} <= set(constraints())
