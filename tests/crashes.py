"""A worker of pytest-xdist that dies ends the run.

By default the plugin starts another one in its place and hands the same file to whoever is left, who dies of the same
test; with `--dist loadfile` it then waits for ever for tests that nobody runs.
"""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before the plugin looks
def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "maxworkerrestart", "not installed") is None:
        config.option.maxworkerrestart = "0"
