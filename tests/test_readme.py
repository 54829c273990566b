"""The README's example runs as it stands, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The password is hunter2." in done.stdout
    assert "Meet me at a quarter past nine." in done.stdout


def test_the_commands_exist():
    text = README.read_text(encoding="utf-8")
    from invert_fast.cli.main import _parser

    for command in ("capture", "invert", "score"):
        (line,) = re.findall(rf"^invert-fast {command} .*$", text, re.MULTILINE)
        _parser().parse_args(line.split()[1:])
    makefile = (README.parent / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)
