"""What is said of packages that are missing, or of another version; that the same versions stand everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from invert_fast.integrations.needs import PACKAGES, Package
from invert_fast.types import InputError

from .page import PAGE, ROOT


def test_a_missing_package_and_a_wrong_version_are_named_with_what_to_install():
    with pytest.raises(InputError) as error:
        Package("no-such-package", "nothing", "extra", "1", "2").load()
    assert str(error.value) == (
        "no-such-package is not installed, expected 1 or newer, below 2: pip install 'invert_fast[extra]'"
    )
    with pytest.raises(InputError, match=r"numpy \S+ is installed, expected 1 or newer, below 1.5: pip install"):
        Package("numpy", "numpy", "extra", "1", "1.5").load()
    assert Package("numpy", "numpy", "extra", "1", "99").load("linalg").__name__ == "numpy.linalg"


def test_the_extras_the_pins_and_the_page_say_the_same():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "tests/integrations/requirements.txt").read_text().splitlines()
    pins = {canonicalize_name(r.name): r for r in map(Requirement, (line for line in lines if line and line[0] != "#"))}
    page = PAGE.read_text(encoding="utf-8")
    for package in PACKAGES:
        (extra,) = map(Requirement, extras[package.extra])
        assert (extra.name, str(extra.specifier)) == (package.distribution, f"<{package.below},>={package.least}")
        (pin,) = pins[canonicalize_name(package.distribution)].specifier
        assert extra.specifier.contains(pin.version)
        assert f"`invert_fast[{package.extra}]`" in page
        assert re.search(rf"\([^)]*{re.escape(pin.version)}\)", page), f"{pin}: the page names what was tried"


def test_nothing_of_other_tools_is_imported_before_it_is_asked_for():
    code = (
        "import sys, invert_fast, invert_fast.integrations.leak, invert_fast.reports.html, invert_fast.reports.frames\n"
        f"print([name for name in {[p.module for p in PACKAGES] + ['pandas', 'IPython']} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
