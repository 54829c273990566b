"""An audit from its first capture to its page."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..defences.utility import losses_of_texts
from ..inverter import Inverter
from ..lens.sums_store import SWITCH
from ..types import InputError
from .folder import FORMAT, Folder, opened
from .measure import Bench, Original, original
from .publish import publish
from .settings import Cell, Settings
from .tokens import describe

_ROUNDS, _AT_ONCE = 3, 64


def audit(
    inverter: Inverter,
    texts: Sequence[Any],
    output: str | Path,
    settings: Settings | None = None,
    *,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    name: str | None = None,
    planned: Callable[[int], Any] | None = None,
    tick: Callable[[str, int], Any] | None = None,
) -> dict[str, Any]:
    """Capture, defend and invert texts (or chats, or ids) in all cells of the settings; write the folder `output`:
    results.jsonl, summary.json and index.html. Returns what summary.json has.

    inverter: of the model, at any layer; resume: go on with a folder that was begun; shard: `(i, n)`, the i-th of n
    parts of the texts, for `join`; name: what the model is called; planned: told how many tokens are to be recovered;
    tick: told of each cell, when it is done, and its tokens. Raises InputError for settings that this model has not,
    texts without tokens alone, and a folder of another audit.
    """
    settings = settings or Settings()
    layer = inverter.decoder.layer
    layers = settings.layer_names(layer.blocks, layer.tied)
    cells = settings.cells(layers)
    part, parts = shard or (1, 1)
    ids = [inverter.encode(text, settings.max_tokens, settings.special) for text in texts]
    own = [i for i in range(part - 1, len(ids), parts) if ids[i]]
    if not own:
        raise InputError(
            "there is no text with a token in it, expected one at least: give other prompts, or fewer shards"
        )
    originals = [original(inverter.decoder, i, ids[i]) for i in own]
    with opened(Path(output)) as folder:
        folder.begin(
            _about(inverter, settings, cells, ids, shard, name),
            originals,
            describe(inverter, sorted({token for text in originals for token in text.ids})),
            resume,
        )
        left = [cell for cell in cells if cell not in folder.done]
        with _nothing_learned():
            _work(inverter, originals, settings, left, folder, planned, tick)
        return publish(folder.path)


def _work(
    inverter: Inverter,
    originals: Sequence[Original],
    settings: Settings,
    cells: Sequence[Cell],
    folder: Folder,
    planned: Callable[[int], Any] | None,
    tick: Callable[[str, int], Any] | None,
) -> None:
    tokens = sum(len(text.ids) for text in originals)
    if planned:
        planned(tokens * len(cells))
    bench: Bench | None = None
    base: list[torch.Tensor] = []
    for cell in cells:
        if bench is None or bench.inverter.decoder.layer.name != cell.layer:
            own = Inverter(inverter.decoder.model, inverter.decoder.tokenizer, cell.layer)
            if not base:
                base = own_losses(own, [text for text in originals if text.index < settings.measure])
            bench = Bench(own, originals, settings, base)
        folder.add(cell, bench.rows(cell))
        if tick:
            tick(str(cell), tokens)


@contextmanager
def _nothing_learned() -> Iterator[None]:
    """A lens that learned from texts of one cell would know them in the next: what comes back would hang on the order
    of the cells, and be more than whoever has not seen the texts gets."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def own_losses(inverter: Inverter, texts: Sequence[Original]) -> list[torch.Tensor]:
    """The model's loss of each token of some texts, by its own forward pass: from undefended states it is the same at
    every layer."""
    rows = [*inverter.capture_ids([text.ids for text in texts])]
    return losses_of_texts(inverter.decoder, [text.ids for text in texts], rows)


def bare_pass(inverter: Inverter, ids: Sequence[Sequence[int]]) -> float:
    """Seconds a token of the model's own batched forward pass of these texts."""
    some = [text for text in ids if text][:_AT_ONCE]
    taken = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _rows in inverter.capture_ids(some, batch_size=_AT_ONCE):
            pass
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) / sum(map(len, some))


def _about(
    inverter: Inverter,
    settings: Settings,
    cells: Sequence[Cell],
    ids: Sequence[Sequence[int]],
    shard: tuple[int, int] | None,
    name: str | None,
) -> dict[str, Any]:
    """What an audit is of. All but the versions, the time and the bare pass has to be the same when it is gone on
    with."""
    decoder = inverter.decoder
    return {
        "format": FORMAT,
        "model": {
            "name": name or decoder.model.config._name_or_path or type(decoder.model).__name__,
            "fingerprint": decoder.fingerprint(),
            "parameters": decoder.parameters,
            "blocks": decoder.layer.blocks,
        },
        "settings": settings.as_json(),
        "cells": [asdict(cell) for cell in cells],
        "texts_in_all": len(ids),
        "texts_without_tokens": sum(not text for text in ids),
        "input": hashlib.sha256(json.dumps([list(text) for text in ids]).encode()).hexdigest(),
        "shard": None if shard is None else [*shard],
        "device": decoder.device.type,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "bare_seconds_per_token": bare_pass(inverter, ids),
        "threads": torch.get_num_threads(),
        "begun": time.strftime("%Y-%m-%d"),
        "versions": {
            "invert_fast": __version__,
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
            "python": platform.python_version(),
        },
    }
