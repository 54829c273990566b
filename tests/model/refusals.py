"""How a refusal reads."""

from __future__ import annotations

import pytest


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message
