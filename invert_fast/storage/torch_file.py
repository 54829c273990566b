"""Files of `torch.save`, read as tensors and containers alone: whatever else is in them is refused, never run."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..types import InputError
from .contents import brief

_DEEPEST = 8  # containers in containers: layers of steps of texts are three
_MOST = 1 << 22  # tensors and containers in all, counted as often as they are named
_SPARE = 1 << 20  # numbers that a tensor may have without having them in the file, as an expanded mask does


def load_torch(path: Path) -> Any:
    """What was saved, its tensors on the CPU and mapped where the format allows it. Raises InputError for objects of
    any other class (they are pickles, which can run code), and for damaged files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read as well
            _check_packing(path)
            found = _load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is a pickle of more than tensors ({_culprit(error)}), which can run code and is never loaded, "
            "expected tensors alone: save them with torch.save({'hidden': hidden}, path), an output's by "
            "torch.save(output.hidden_states, path)"
        ) from error
    except Exception as error:  # hostile bytes make the reader stumble in any way
        raise InputError(
            f"{path} is damaged or no file of torch.save ({brief(error)}), expected tensors: save them with "
            "safetensors.torch.save_file"
        ) from error
    if isinstance(found, (Tensor, Mapping, list, tuple)):
        _check_size(path, found)
    return found


def _check_packing(path: Path) -> None:
    """ValueError for an archive whose members are packed: `torch.save` packs none, and they could be of any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if packed := [info.filename for info in archive.infolist() if info.file_size != info.compress_size]:
                raise ValueError(f"`{packed[0][:80]}` is packed, which torch.save does not do")


def _check_size(path: Path, found: Any) -> None:
    """InputError for what is larger in memory than in its file: containers that hold themselves or are named again and
    again, tensors that are expanded from a few numbers. And for tensors that are no tables of numbers."""
    level = {id(found): (found, 1)}
    for _ in range(_DEEPEST):
        below: dict[int, tuple[Any, int]] = {}
        for item, times in level.values():
            if isinstance(item, Tensor):
                _check_tensor(path, item)
                continue
            parts: Iterable[Any] = item.values() if isinstance(item, Mapping) else item
            for part in parts:
                if isinstance(part, (Tensor, Mapping, list, tuple)):
                    below[id(part)] = part, times + below.get(id(part), (part, 0))[1]
        level = below
        if not level or sum(times for _, times in level.values()) > _MOST:
            break
    if level:
        raise InputError(
            f"{path} has lists in lists beyond measure, expected tensors of states, or lists and mappings of them: "
            "save them with safetensors.torch.save_file"
        )


def _check_tensor(path: Path, tensor: Tensor) -> None:
    if tensor.is_nested or tensor.is_meta:  # of parts that are looked at by themselves; of no numbers
        return
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise InputError(f"{path} has a tensor that is {kind}, expected plain ones: save what to_dense() gives")
    if tensor.numel() > _SPARE and tensor.nbytes > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{path} has a tensor {list(tensor.shape)} that is expanded from {tensor.untyped_storage().nbytes():,} "
            "bytes, expected one that has its numbers: save a copy of it (contiguous())"
        )


def _load(path: Path) -> Any:
    try:
        if path.suffix != ".safetensors":  # PyTorch goes by the name there
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError):
        pass  # the old format cannot be mapped
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _culprit(error: Exception) -> str:
    """The class that was refused, if the reader names one."""
    words = str(error).split()
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("GLOBAL", "global")]
    return named[0].strip("`'\",.") if named else "Python objects"
