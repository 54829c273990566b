"""The page of examples, docs/integrations.md, and the text that they are about."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "integrations.md"
PASSWORD = "The password is hunter2."


def block(section: str) -> str:
    """The Python example of one section of the page."""
    (text,) = re.findall(
        rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code
