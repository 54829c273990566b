"""How much memory there is, what a model takes of it, and whether it fits: known before any weight is read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch

from ..ops.best_two import MANY_TOKENS
from ..ops.linear import MOST_BYTES, packed_bytes
from ..storage.json_text import parse
from ..types import InputError
from .decoder import Decoder

_GIB = 1 << 30
_LARGEST_HEADER = 100_000_000
_LOWER = ("bfloat16", "float16")
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_SKETCH, _DIRECTIONS = 1 / 3, 64  # of an embedding row, about, in the search for lists; and for neighbours


def available_gib(device: torch.device) -> float:
    """Free memory of the device, GiB; 4 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / _GIB
    try:
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
        return int(line.split()[1]) / (1 << 20)
    except (OSError, StopIteration, ValueError, IndexError):
        return 4.0


def held_bytes(decoder: Decoder) -> int:
    """What is held as long as the decoder is: its weights, those packed beside them, and what a vocabulary needs: a
    copy of the embedding where its own precision will not do, and its rows in a few directions, about."""
    model, embedding = decoder.model, decoder.embedding
    weights = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    size, width = embedding.shape
    sketches = 4 * size * (width * _SKETCH + _DIRECTIONS) if size >= MANY_TOKENS else 0
    packed = packed_bytes(decoder.body) if decoder.own is None else 0
    if size >= MANY_TOKENS and decoder.layer.depth:  # the blocks behind it are run as well, see `onward.py`
        packed = packed * decoder.layer.blocks // decoder.layer.depth
    return sum(weights.values()) + packed + embedding.copied + int(sketches)


def check_fits(folder: Path, name: str, device: str, dtype: torch.dtype) -> None:
    """InputError for a checkpoint whose weights, and what is kept beside them, are more than is free."""
    tensors = tensors_in(folder)
    where, wanted = torch.device(device), str(dtype).removeprefix("torch.")
    needs = {kind: _needed(tensors, getattr(torch, kind)) / _GIB for kind in dict.fromkeys((wanted, *_LOWER))}
    host, need = torch.device("cpu"), needs[wanted]
    short = next((d for d in dict.fromkeys((where, host)) if need > available_gib(d)), None)
    if short is None:
        return
    smaller = [f"{kind} ({size:.1f} GiB)" for kind, size in needs.items() if size <= available_gib(short)]
    others = [f"cuda:{i}" for i in range(torch.cuda.device_count()) if available_gib(torch.device("cuda", i)) >= need]
    ways = [f"dtype {' or '.join(smaller)} fits"] if smaller else []
    ways += [f"device {' or '.join(others)} has room"] if others and where == host else []
    raise InputError(
        f"model '{name}' takes {need:.1f} GiB in {wanted}, expected at most the {available_gib(short):.1f} GiB that "
        f"are free on {short}: {'; '.join(ways) or 'no precision fits, free memory or take a larger machine'}"
    )


def _needed(tensors: list[tuple[str, list[int]]], dtype: torch.dtype) -> int:
    """Bytes of these weights in a precision, and of what is kept beside them: linear maps packed, or the embedding (the
    largest matrix there is) in fp32."""
    size = torch.finfo(dtype).bits // 8
    weights = sum(prod(shape) * (size if "F" in kind else SIZES.get(kind, 1)) for kind, shape in tensors)
    # Packed, what was stored as bf16 takes two bytes a number: `ops.linear.pack_halved`.
    matrices = sorted((prod(shape), 2 if kind == "BF16" else 4) for kind, shape in tensors if len(shape) == 2)
    largest, its_size = matrices.pop() if matrices else (0, 4)
    if dtype != torch.float32:
        return weights + 4 * largest
    packed = sum(count * each for count, each in matrices)
    return weights + (packed if packed <= MOST_BYTES else 0) + (2 * largest if its_size == 2 else 0)


def tensors_in(folder: Path) -> list[tuple[str, list[int]]]:
    """Type and shape of all tensors of a checkpoint; none of what cannot be read, of which loading will tell."""
    found = []
    try:
        for file in _files(folder):
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = parse(stream.read(length)) if length <= _LARGEST_HEADER else {}
            header.pop("__metadata__", None)
            found += [(str(about["dtype"]), [int(n) for n in about["shape"]]) for about in header.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return []
    return found


def _files(folder: Path) -> Iterable[Path]:
    """Those that are loaded: what the index names, else the one file, else all there are."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.exists():
        return [whole]
    if index.exists():
        return [folder / name for name in sorted(set(parse(index.read_bytes())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))
