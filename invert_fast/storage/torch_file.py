"""Files of `torch.save`, read as tensors and containers alone: whatever else is in them is refused, never run."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from ..types import InputError
from .contents import brief


def load_torch(path: Path) -> Any:
    """What was saved, its tensors on the CPU and mapped where the format allows it. Raises InputError for objects of
    any other class (they are pickles, which can run code), and for damaged files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are read as well
            return _load(path)
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
