"""Tries what `make wheel` built as its users do: in an environment of its own, without a compiler, away from the tree.

    python tools/test_wheel.py dist

What the wheel needs (PyTorch, transformers …) is that of the environment this runs in, by a path file: of its editable
install of invert_fast nothing can be seen there, since path files in there are not read.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# In an sdist: what compiles the package, what explains it, and the package.
SDIST_FILES = {
    *("CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
    *("constraints.txt", "pyproject.toml", "setup.cfg", "setup.py"),
}
SDIST_FOLDERS = {"csrc", "docs", "invert_fast", "invert_fast.egg-info", "kernels"}
KINDS = {
    *("", ".py", ".typed", ".cpp", ".h", ".cu", ".cuh", ".md", ".svg", ".ipynb", ".txt", ".json", ".yaml", ".sh"),
    *(".safetensors", ".cfg", ".toml", ".in", ".png", ".css", ".js", ".j2"),
}
LOOK = """
import invert_fast, invert_fast.kernels, importlib.metadata as metadata
from invert_fast import _C
assert metadata.version("invert_fast") == invert_fast.__version__ == {version!r}, invert_fast.__version__
for module in (invert_fast, invert_fast.kernels, _C):
    assert module.__file__.startswith({home!r}), module.__file__
print("instruction sets, chosen at run time:", *_C.isas())
"""


def check(condition: object, said: str) -> None:
    if not condition:
        raise SystemExit(f"test_wheel: {said}")


def sources(folder: str) -> set[PurePosixPath]:
    """Files of the tree below a folder that are neither caches nor built."""
    found = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {
        PurePosixPath(path.as_posix()) for path in found if path.suffix in KINDS and "__pycache__" not in path.parts
    }


def check_sdist(sdist: Path) -> set[str]:
    """The files of an sdist; an error for one that is foreign to it."""
    with tarfile.open(sdist) as archive:
        names = {
            PurePosixPath(member.name).relative_to(sdist.name.removesuffix(".tar.gz"))
            for member in archive
            if member.isfile()
        }
    for name in sorted(names):
        known = name.parts[0] in SDIST_FOLDERS if len(name.parts) > 1 else name.name in SDIST_FILES
        check(known and name.suffix in KINDS and "__pycache__" not in name.parts, f"{sdist.name} holds {name}")
    wanted = {*sources("csrc"), *sources("kernels"), *sources("docs"), *sources("invert_fast")}
    check(not (lost := wanted - names), f"{sdist.name} does not hold {', '.join(map(str, lost))}")
    return {str(name) for name in names}


def check_wheel(wheel: Path) -> str:
    """The version in a wheel's metadata; an error for what is foreign to it, and for a tag that PyPI does not take."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(about))
    libraries = [name for name in names if name.endswith((".so", ".pyd"))]
    check(len(libraries) == 1 and libraries[0].startswith("invert_fast/_C."), f"{wheel.name} holds {libraries}")
    wanted = {str(name).replace("kernels/", "invert_fast/kernels/", 1) for name in sources("kernels")}
    lost = {*map(str, sources("invert_fast")), *wanted} - {*names}
    check(not lost, f"{wheel.name} does not hold {', '.join(lost)}")
    foreign = [n for n in names if (n.split("/")[0] != "invert_fast" and ".dist-info/" not in n) or n.endswith(".pyc")]
    check(not foreign, f"{wheel.name} holds {foreign}")
    if sys.platform == "linux":
        check(
            re.search(r"-manylinux_2_\d+_\w+\.whl$", wheel.name), f"{wheel.name} is for no manylinux: see `make wheel`"
        )
    return str(metadata["Version"])


def environment(folder: Path, wheel: Path) -> Path:
    """A fresh virtual environment with the wheel in it."""
    venv.create(folder, symlinks=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(site) / "what_it_needs.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    return python


def main() -> None:
    """Look at the sdist and the wheel, then use the wheel."""
    parser = argparse.ArgumentParser(description="try what was built as its users do")
    parser.add_argument("dist", type=Path, help="folder of one sdist and one wheel")
    dist = parser.parse_args().dist.resolve()
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    print(f"{sdist.name}: {len(check_sdist(sdist))} files")
    version = check_wheel(wheel)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary).resolve()
        python = environment(home / "venv", wheel)
        variables = {"HOME": str(home), "INVERT_FAST_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
        variables["PATH"] = str(python.parent)  # no compiler, no ninja, nothing
        variables |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
        check(not shutil.which("c++", path=variables["PATH"]), "there is a compiler after all")

        def run(*command: str | Path) -> str:
            done = subprocess.run(
                [*map(str, command)], cwd=home, env=variables, capture_output=True, text=True, check=False
            )
            check(not done.returncode, f"{command[0]} … ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            return done.stdout

        print(run(python, "-c", LOOK.format(version=version, home=str(home))).strip())
        said = run(python.parent / "invert-fast", "--version").strip()
        check(said == f"invert-fast {version}", f"--version says {said}")
        (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        check("hunter2" in run(python, "-c", example), "the README's example did not recover its text")
        table = run(python.parent / "invert-fast", "demo")
        check("auto" in table, "the demo shows no table")
        print(table.strip())
        if pyright := shutil.which("pyright", path=Path(sys.executable).parent):
            shutil.copy(ROOT / "tests" / "typed" / "user_program.py", home)
            variables["PATH"] = os.environ["PATH"]  # node
            print(run(pyright, "--pythonpath", python, "user_program.py").strip())
        else:
            print("pyright is not installed: that the wheel is typed was not looked at (`make lint` looks at the tree)")
    print(f"{wheel.name} works")


if __name__ == "__main__":
    main()
