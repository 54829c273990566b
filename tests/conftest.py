"""What every test runs in: no network, no GPU compiler, and a cache folder of its own."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is decorated, so before any import of ours
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["INVERT_FAST_SHARPEN"] = "off"  # no test's cost may hang on what another recovered
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several with all threads each only wait for each other

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
import transformers
from hypothesis import HealthCheck, settings

from .crashes import pytest_configure as pytest_configure
from .crashes import pytest_configure_node as pytest_configure_node
from .small_fits import shrink

ROOT = Path(__file__).resolve().parents[1]

transformers.logging.set_verbosity_error()
# `HYPOTHESIS_PROFILE=hunt pytest` looks for new counterexamples; the default repeats the same ones, quickly.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("quick", derandomize=True, max_examples=25, database=None, **_common)
settings.register_profile("hunt", max_examples=1000, print_blob=True, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class TimeLimit(Protocol):
    def __call__(self, seconds: float) -> AbstractContextManager[None]: ...


# By what they take: the longest first, so that all workers end together. Of the others the order does not matter.
LONG = (
    "bench/test_gpu_script.py",
    "test_zoo.py",
    "strategies/test_exactness.py",
    "engine/test_invariance.py",
    "lmi/test_lmi_training.py",
    "lens/test_fit.py",
    "lens/test_choose.py",
    "lens/test_sharpen.py",
    "diagnose/test_captures.py",
    "diagnose/test_families.py",
    "ops/test_triton.py",
    "test_certificates_wrong_states.py",
    "test_certificates_equal_tokens.py",
    "test_certificates_coarse.py",
    "strategies/test_gradient_exactness.py",
    "defences/test_utility.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {str(ROOT / "tests" / name): place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(str(item.path), len(LONG)))


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is calibrated and fitted is kept for this session only, and then for all workers: each entry is whole or not
    there, and follows from its key alone."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVERT_FAST_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("INVERT_FAST_CACHE", str(folder))
    return folder


@pytest.fixture
def small_fits(cache, monkeypatch) -> Path:
    """The empty cache folder, into which fits of lenses of a second go."""
    shrink(monkeypatch)
    return cache


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models and real text that are no part of the project."""
    folder = Path(os.environ.get("INVERT_FAST_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}: set INVERT_FAST_SHARED to the one with trained models and texts")
    return folder


@pytest.fixture
def time_limit() -> TimeLimit:
    """`with time_limit(seconds):` turns an endless loop into a failure. The seconds are of computing: a machine may be
    busy with something else."""

    @contextmanager
    def limit(seconds: float) -> Iterator[None]:
        def stop(*_):
            raise TimeoutError(f"still computing after {seconds} s")

        before = signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    return limit
