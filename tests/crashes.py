"""A worker of pytest-xdist that dies ends the run.

By default the plugin starts another one in its place and hands the same file to whoever is left, who dies of the same
test; with `--dist loadfile` it then waits for ever for tests that nobody runs.
"""

from __future__ import annotations

from contextlib import suppress

import pytest


@pytest.hookimpl(tryfirst=True)  # before the plugin looks
def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "maxworkerrestart", "not installed") is None:
        config.option.maxworkerrestart = "0"


@pytest.hookimpl(optionalhook=True)  # the plugin's
def pytest_configure_node(node) -> None:
    """More tests may be sent to a worker that has died, which the plugin has not read yet: the broken pipe would end
    the run as an error of the plugin's, before it says which test the worker died of."""
    send = node.sendcommand

    def send_if_alive(name: str, **arguments) -> None:
        with suppress(OSError):
            send(name, **arguments)

    node.sendcommand = send_if_alive
