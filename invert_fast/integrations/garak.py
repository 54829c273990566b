"""garak: a probe and a detector of what hidden states give away, as `probes.invert_fast` and `detectors.invert_fast`.

garak takes plugins from its own folders alone. `register` adds ours to these, in this process, so its command line is
started through this module and is otherwise as always:

    python -m invert_fast.integrations.garak --target_type huggingface.Model --target_name ./my-model \\
        --spec probes.invert_fast.HiddenStates
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .needs import GARAK

PROBE, DETECTOR = "probes.invert_fast.HiddenStates", "detectors.invert_fast.Recovered"
_PLUGINS = Path(__file__).parent / "garak_plugins"


def register() -> None:
    """Make garak know `probes.invert_fast.HiddenStates` and `detectors.invert_fast.Recovered`, by these names
    everywhere.

    Raises InputError where garak is not installed, or in a version that is not supported.
    """
    GARAK.check()
    plugins = import_module("garak._plugins")
    for name in (PROBE, DETECTOR):
        kind, module, plugin = name.split(".")
        package = import_module(f"garak.{kind}")
        folder = str(_PLUGINS / kind)
        if folder not in package.__path__:
            package.__path__.append(folder)
        found = getattr(import_module(f"garak.{kind}.{module}"), plugin)
        plugins.PluginCache.instance()[kind][name] = plugins.PluginCache.plugin_info(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """garak's command line, with ours among its plugins."""
    register()
    import_module("garak.cli").main([*(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
