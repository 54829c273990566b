"""Skips a file of tests whose package is not installed: `make test-integrations` installs them all."""

from __future__ import annotations

import pytest

from invert_fast.integrations.needs import Package
from invert_fast.types import InputError


def needed(package: Package) -> None:
    try:
        package.check()
    except InputError as error:
        pytest.skip(str(error), allow_module_level=True)
