"""Tolerances as files in the cache folder."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..model.decoder import Decoder
from ..ops import outside
from ..storage import cache
from ..storage.json_text import parse
from .noise import Metric
from .tolerances import Tolerances

log = logging.getLogger("invert_fast")

_FORMAT = "tolerances-8"


def name(decoder: Decoder, dtype: str, compute_dtype: str) -> str:
    """File name, in the cache folder, of what holds for states of these precisions."""
    details = (dtype, compute_dtype, str(decoder.dtype), decoder.device.type)
    if outside.name_in_use():  # noise of its own
        details = (*details, outside.name_in_use())
    return cache.key(decoder.identity, _FORMAT, *details) + ".safetensors"


def write(file: str, found: Tolerances) -> None:
    figures = {key: value for key, value in asdict(replace(found, metric=None)).items() if key != "metric"}
    tensors = {"none": torch.zeros(0)}
    if found.metric is not None:
        tensors = {"directions": found.metric.directions.contiguous(), "held": found.metric.held.contiguous()}
    cache.write(file, save(tensors, metadata={"figures": json.dumps(figures)}))
    log.debug("tolerances: measured on prose and random tokens; %s", cache.kept(cache.path(file)))


def read(file: str, decoder: Decoder) -> Tolerances | None:
    """What an earlier run measured; anything but pairs of positive numbers, and a metric that fits, is measured
    again."""
    path = cache.path(file)
    if path is None:
        return None
    found = _read(path, decoder)
    if found is None:
        log.warning("the stored tolerances %s are damaged: measuring them again", path)
    else:
        log.debug("tolerances: read from %s", path)
    return found


def _read(path: Path, decoder: Decoder) -> Tolerances | None:
    try:
        with safe_open(path, framework="pt", device=str(decoder.device)) as held:
            figures = parse((held.metadata() or {})["figures"])
            keys = set(held.keys())
            metric = Metric(held.get_tensor("directions"), held.get_tensor("held")) if "held" in keys else None
        pairs = {key: (float(first), float(rest)) for key, (first, rest) in figures.items() if key != "metric"}
        found = Tolerances(**pairs)  # type: ignore[arg-type]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError):
        return None
    pairs = {key: pair for key, pair in pairs.items() if key not in ("power", "within")}
    if (
        not all(0 < x < math.inf for pair in pairs.values() for x in pair)
        or not all(0 <= p <= 1 for p in found.power)
        or not all(0 <= w < math.inf for w in found.within)
    ):
        return None
    if metric is None:
        return found
    k = metric.held.shape[-1]
    fits = metric.held.shape == (2, k) and metric.directions.shape == (2, decoder.width, k)
    sound = fits and bool(metric.directions.isfinite().all()) and bool(((metric.held >= 0) & (metric.held < 1)).all())
    return replace(found, metric=metric) if sound else None
