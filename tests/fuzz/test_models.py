"""Configs of model folders from anybody: a model comes of them, or one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from invert_fast import InputError, Inverter

from ..conftest import TimeLimit
from ..families import build
from ..memory import memory_limit, needs_limits
from .hostile import replaced

WORDS = 24


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build(request.param, vocab=WORDS, width=16, blocks=1).save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@needs_limits
@settings(max_examples=settings.default.max_examples * 3 // 5, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_configs_are_read_or_refused(folder, config, time_limit: TimeLimit, data):
    hostile = data.draw(replaced(config))
    (folder / "config.json").write_text(json.dumps(hostile, ensure_ascii=True))
    with memory_limit(), time_limit(60):
        try:
            Inverter.from_pretrained(folder)
            said = ""
        except InputError as error:
            said = str(error)
    assert "\n" not in said
    assert not said or ":" in said, "what to do?"
