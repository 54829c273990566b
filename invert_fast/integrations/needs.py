"""The packages of other tools: which versions are supported, and what to do where one is missing or another."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, metadata
from types import ModuleType

from ..types import InputError


@dataclass(frozen=True)
class Package:
    """distribution: its name for pip; module: for Python; extra: of ours, that installs it; least, below: versions
    supported, `least ≤ version < below`."""

    distribution: str
    module: str
    extra: str
    least: str
    below: str

    def check(self) -> None:
        """InputError where it is not installed, or in a version that is not supported. Imports nothing of it."""
        from packaging.version import Version

        wanted = f"expected {self.least} or newer, below {self.below}: pip install 'invert_fast[{self.extra}]'"
        try:
            version = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            raise InputError(f"{self.distribution} is not installed, {wanted}") from None
        if not Version(self.least) <= Version(version) < Version(self.below):
            raise InputError(f"{self.distribution} {version} is installed, {wanted}")

    def load(self, submodule: str = "") -> ModuleType:
        """The module, or one inside it, if it may be used (see `check`)."""
        self.check()
        return import_module(self.module + (f".{submodule}" if submodule else ""))


INSPECT = Package("inspect_ai", "inspect_ai", "inspect", "0.3.285", "0.4")
TRANSFORMER_LENS = Package("transformer-lens", "transformer_lens", "transformer-lens", "3.9", "5")
NNSIGHT = Package("nnsight", "nnsight", "nnsight", "0.8.1", "0.9")
GARAK = Package("garak", "garak", "garak", "0.17", "0.18")
ART = Package("adversarial-robustness-toolbox", "art", "art", "1.20", "2")
LM_EVAL = Package("lm_eval", "lm_eval", "lm-eval", "0.4.13", "0.5")
RAY = Package("ray", "ray", "ray", "2.60", "3")
PACKAGES = (INSPECT, TRANSFORMER_LENS, NNSIGHT, GARAK, ART, LM_EVAL, RAY)
