"""Looked-up neighbours in the cache folder: those of one embedding matrix, whatever layer and precision asks."""

from __future__ import annotations

import logging

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..storage import cache
from .decoder import Decoder
from .neighbours import NEAREST, Neighbours

log = logging.getLogger("invert_fast")

_FORMAT = "neighbours-1"
LARGE = 1 << 15  # a smaller vocabulary is searched sooner than a file is read
_LEAST = 512


def name(decoder: Decoder, digest: int) -> str:
    """File name, in the cache folder. The final norm decides how rows look to the states behind it; digest: of every
    row of the embedding, since a fingerprint only samples."""
    model, _, usable = decoder.identity
    parts = (
        str(decoder.dtype),
        str(digest),
        "normed" if decoder.layer.normed else "raw",
        *decoder.reading.kind.split(),
    )
    return cache.key((model, usable), _FORMAT, *parts) + ".safetensors"


def worth_keeping(known: int, stored: int) -> bool:
    """Whether so many have been looked up since the file was written that it is worth writing again."""
    return known >= max(_LEAST, stored + stored // 2)


def read(file: str, into: Neighbours) -> int:
    """Take in what an earlier run looked up. Returns how many tokens; a damaged file has none."""
    path = cache.path(file)
    if path is None:
        return 0
    size = len(into.representative)
    try:
        held = load_file(path)
        tokens, ids, distance, beyond = (held[key] for key in ("tokens", "ids", "distance", "beyond"))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError):
        log.warning("the stored neighbours %s are damaged: looking them up again", path)
        return 0
    shapes = [tokens.shape, ids.shape, distance.shape, beyond.shape]
    n = len(tokens) if tokens.dim() == 1 else 0
    whole = (
        n > 0
        and shapes == [(n,), (n, NEAREST), (n, NEAREST), (n,)]
        and tokens.dtype == ids.dtype == torch.long
        and distance.dtype == beyond.dtype == torch.float32
        and bool(((tokens >= 0) & (tokens < size)).all() and ((ids >= -1) & (ids < size)).all())
        and len(tokens.unique()) == n
        and bool((distance >= 0).all() and (beyond >= 0).all() and (distance.diff(dim=-1).nan_to_num() >= 0).all())
    )
    if not whole:
        log.warning("the stored neighbours %s are of another vocabulary or damaged: looking them up again", path)
        return 0
    into.keep(tokens, ids, distance, beyond)
    log.debug("nearest rivals of %d tokens: read from %s", n, path)
    return n


def write(file: str, neighbours: Neighbours) -> None:
    """Keep all that was looked up; another process that does so at once may have the last word."""
    tokens, ids, distance, beyond = neighbours.kept()
    cache.write(file, save({"tokens": tokens, "ids": ids, "distance": distance, "beyond": beyond}))
