"""Decides which packages and extensions exist; CMakeLists.txt says how the extensions are compiled.

`invert_fast._C` (C++) is built where a compiler works, `invert_fast._cuda` where INVERT_FAST_CUDA allows it:
auto (default) builds it if nvcc is found, on requires it, off leaves it out. What cannot be built is named in one
warning, and the package installs and works without it.

Other variables: CXX, CUDACXX (or CUDA_HOME), INVERT_FAST_CUDA_ARCHS (CMake's names, `80-real;90-real;100`), CMAKE_ARGS.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CUDA_MODES = ("auto", "on", "off")
CXX, CUDA = "invert_fast._C", "invert_fast._cuda"


def cuda_mode() -> str:
    mode = os.environ.get("INVERT_FAST_CUDA") or "auto"
    if mode not in CUDA_MODES:
        raise SystemExit(f"INVERT_FAST_CUDA={mode!r} is unknown: set it to one of {', '.join(CUDA_MODES)}")
    return mode


def find_nvcc() -> str | None:
    if explicit := os.environ.get("CUDACXX"):
        return shutil.which(explicit)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = ["nvcc", *(str(Path(home, "bin", "nvcc")) for home in homes if home)]
    return next(filter(None, map(shutil.which, candidates)), None)


def require_cxx() -> None:
    """Says plainly that there is no compiler, before CMake says it in twenty lines."""
    if sys.platform == "win32":  # MSVC is found through the registry, not the PATH
        return
    wanted = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, wanted)):
        raise CompileError(f"no C++ compiler found (tried {', '.join(wanted)}; set CXX)")


class CMakeBuild(build_ext):
    """Runs CMake once for each extension; a failure costs that extension, not the install."""

    def run(self) -> None:
        if self.inplace:
            self.remove_old_builds()
        super().run()

    def build_extensions(self) -> None:
        built, failures = [], {}
        for extension in self.extensions:
            try:
                require_cxx()
                self.build_extension(extension)
                built.append(extension)
            except (CompileError, ImportError) as error:
                if not extension.optional:
                    raise CompileError(f"{extension.name} is required (INVERT_FAST_CUDA=on): {error}") from error
                failures.setdefault(str(error), []).append(extension.name)
        self.extensions[:] = built  # setuptools would otherwise look for the missing files
        if failures:
            missing = "; ".join(f"{' and '.join(names)} ({reason})" for reason, names in failures.items())
            print(f"warning: invert_fast is installed without {missing}; PyTorch does their work", file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = ext.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / target
        configure = [
            *("cmake", "--fresh", "-S", str(ROOT), "-B", str(build)),  # fresh: caches point into deleted build envs
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DINVERT_FAST_VERSION={self.distribution.get_version()}",
        ]
        if ext.name == CUDA:
            architectures = os.environ.get("INVERT_FAST_CUDA_ARCHS", "")
            configure += ["-DINVERT_FAST_CUDA=ON", f"-DINVERT_FAST_CUDA_ARCHS={architectures}"]
            configure += [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
        self.run_cmake(target, [*configure, *shlex.split(os.environ.get("CMAKE_ARGS", ""))])
        self.run_cmake(target, ["cmake", "--build", str(build), "--config", "Release", "--target", target])

    def run_cmake(self, target: str, command: list[str]) -> None:
        try:
            subprocess.run(command, check=True)
        except OSError as error:
            raise CompileError(f"cmake does not run: {error}") from error
        except subprocess.CalledProcessError as error:
            raise CompileError(f"compiling {target} failed, see CMake's output above (pip shows it with -v)") from error

    def remove_old_builds(self) -> None:
        """An op that is no longer built must not be served by the library of an earlier install.

        Removed and not overwritten: a running process keeps the file that it has mapped.
        """
        for name in (CXX, CUDA):
            ROOT.joinpath(*name.split(".")[:-1], self.get_ext_filename(name.rpartition(".")[2])).unlink(missing_ok=True)


def extensions() -> list[Extension]:
    def sources(*patterns: str) -> list[str]:
        return [path.relative_to(ROOT).as_posix() for pattern in patterns for path in sorted(ROOT.glob(pattern))]

    headers = ["CMakeLists.txt", *sources("csrc/*.h", "csrc/cuda/*.cuh")]  # listed, so that an sdist carries them
    found = [Extension(CXX, sources("csrc/*.cpp"), depends=headers, optional=True)]
    mode = cuda_mode()
    if mode == "on" and not find_nvcc():
        raise SystemExit("INVERT_FAST_CUDA=on, but no nvcc was found: set CUDA_HOME or CUDACXX, or use auto or off")
    if mode != "off" and find_nvcc():
        found.append(
            Extension(CUDA, sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu"), depends=headers, optional=mode == "auto")
        )
    return found


setup(
    # `kernels` is also the name of a package that transformers looks for: ours exists only below `invert_fast`.
    packages=[*find_packages(include=["invert_fast", "invert_fast.*"]), "invert_fast.kernels"],
    package_dir={"invert_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": CMakeBuild},
)
