"""What linear lenses are solved from, as files in the cache folder: sums that several processes add to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from ..model.decoder import Decoder
from ..model.vocabulary import Vocabulary
from ..storage import cache
from ..storage.json_text import parse
from ..storage.lock import in_turn
from .files import read_or_warn, whole_tensor
from .normal_equations import NormalEquations

SWITCH = "INVERT_FAST_SHARPEN"
_GOOD = 0.97  # of drafts right: nothing to gain
_SUMS = "sums-1"
_LARGEST = 1 << 26  # numbers: those of states up to 2,700 wide
_PATIENCE = 20.0  # seconds that another process may take to add to a file
_THEN = "use teaches this lens nothing more"


def learns(accuracy: float) -> bool:
    """Whether a linear lens that drafts so many tokens right is to learn from use."""
    return os.environ.get(SWITCH) != "off" and accuracy < _GOOD


def sums_name(decoder: Decoder, seed: int) -> str:
    """File name, in the cache folder, of the sums that the linear lens of this model and layer is solved from."""
    return cache.key(decoder.identity, _SUMS, str(seed)) + ".safetensors"


def tokens_used(decoder: Decoder, seed: int) -> int | None:
    """How many tokens of use are in them; None where there are no sums to add to."""
    path = cache.path(sums_name(decoder, seed))
    return read_or_warn(path, _sums_about, _THEN)


def read_sums(decoder: Decoder, vocabulary: Vocabulary, seed: int) -> tuple[NormalEquations, int] | None:
    """The sums, and how many tokens of use are in them; None where there are none that are whole."""
    path = cache.path(sums_name(decoder, seed))
    out, width = vocabulary.embedding.shape[1], decoder.width
    return read_or_warn(path, lambda path: _whole(path, out, width, width + 1, decoder.device), _THEN)


def add_to_sums(decoder: Decoder, seed: int, fresh: NormalEquations, of_use: bool = True) -> int | None:
    """Add pairs, from use or from more texts, to those on disk, whoever else does so too. Returns as `tokens_used`."""
    name = sums_name(decoder, seed)
    path = cache.path(name)
    if path is None:
        return None
    with in_turn(name, _PATIENCE):
        found = read_or_warn(path, lambda path: _whole(path, fresh.rows, fresh.width, fresh.context), _THEN)
        if found is None:
            return None
        kept, used = found
        kept.join(fresh)
        used += fresh.count if of_use else 0
        _write_sums(name, kept, used)
        return used


def write_sums(decoder: Decoder, seed: int, sums: NormalEquations) -> None:
    """Those of a lens that was just fitted, in place of what was there."""
    name = sums_name(decoder, seed)
    with in_turn(name, _PATIENCE):
        _write_sums(name, sums, 0)


def _write_sums(name: str, sums: NormalEquations, used: int) -> None:
    if sums.sums.numel() > _LARGEST:
        return
    tensors = {"sums": sums.sums.float().cpu().contiguous(), "count": torch.tensor(sums.count)}
    cache.write(name, save(tensors, metadata={"about": json.dumps({"format": _SUMS, "used": used})}))


def _sums_about(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        used = int(parse((file.metadata() or {})["about"])["used"])
        if used < 0 or int(file.get_tensor("count")) < used:
            raise ValueError(f"{used} tokens of use")
        return used


def _whole(
    path: Path, rows: int, width: int, context: int, device: torch.device | str = "cpu"
) -> tuple[NormalEquations, int]:
    used, sums = _sums_about(path), NormalEquations(rows, width, context, device)
    with safe_open(path, framework="pt") as file:
        sums.sums = whole_tensor(file, "sums", tuple(sums.sums.shape)).to(sums.sums)
        sums.count = int(file.get_tensor("count"))
    return sums, used
