"""Models and tokenizers from folders, GGUF files and the Hub: safetensors or GGUF, no remote code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..calls.interrupts import raise_interrupt
from ..types import InputError, dtype_named
from .folder import check_folder, check_size
from .footprint import check_fits

BUNDLED = Path(__file__).parents[1] / "bundled"


def load(name_or_path: str | Path, device: str = "cpu", dtype: str | torch.dtype = "float32"):
    """(model, tokenizer) from a local folder, a .gguf file, `bundled` or a Hub id: safetensors or GGUF, no remote code.

    Weights of a GGUF file are what its quantisation left of them, computed in `dtype`. Raises InputError when there is
    no such model, none of these weights in it, or no tokenizer; and when it does not fit in memory, before it is read.
    """
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()  # a bar for two milliseconds of loading is noise
    name = str(BUNDLED if str(name_or_path) == "bundled" else name_or_path)
    place, about = _where(Path(name), name)
    dtype = dtype_named(dtype) if isinstance(dtype, str) else dtype
    _check_device(device)
    if not about.get("gguf_file") and (stored := Path(place) if about["local_files_only"] else _downloaded(name)):
        check_folder(stored, name)
        check_fits(stored, name, device, dtype)
    try:
        model, tokenizer = _read(place, about, dtype)
    except InputError:
        raise
    except Exception as error:  # hostile or damaged files make the readers stumble in any way
        raise_interrupt(error)
        raise InputError(
            f"model '{name}' could not be loaded ({' '.join(str(error).split())[:200]}): give a model "
            "folder, a .gguf file, a Hub id that this machine can reach, or 'bundled'"
        ) from error
    nn.Module.to(model, device)
    return model.requires_grad_(False).eval(), tokenizer


def _where(path: Path, name: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given, and how; InputError for what it cannot be given."""
    local = path.is_dir()
    if path.suffix == ".gguf" and path.is_file():
        if importlib.util.find_spec("gguf") is None:
            raise InputError(f"{name} is a GGUF file, and its reader is not installed: pip install 'invert_fast[gguf]'")
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    if local and not (path / "config.json").exists():
        raise InputError(f"{name} has no config.json, expected a Hugging Face model folder")
    if local and not any(path.glob("*.safetensors")):
        raise InputError(f"{name} has no .safetensors file (pickled weights are never loaded): convert it first")
    if not local and (path.exists() or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise InputError(f"{name} is not a folder, expected a model folder, a .gguf file, a Hub id or 'bundled'")
    return name, {"local_files_only": local}


def _read(place: str, about: dict[str, Any], dtype: torch.dtype):
    """A causal language model, or one that reads more than text and has one in it, and the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    config = AutoConfig.from_pretrained(place, trust_remote_code=False, **about)
    text_alone = type(config) in AutoModelForCausalLM._model_mapping
    kind = AutoModelForCausalLM if text_alone else AutoModelForImageTextToText
    kept = {} if about.get("gguf_file") else {"use_safetensors": True}
    with _Unwritten():
        if about["local_files_only"] and kept and Path(place) != BUNDLED:
            check_size(lambda: kind.from_config(config, trust_remote_code=False), Path(place), place)
        model = kind.from_pretrained(place, dtype=dtype, trust_remote_code=False, **kept, **about)
    return model, AutoTokenizer.from_pretrained(place, trust_remote_code=False, **about)


class _Unwritten(TorchFunctionMode):
    """Nothing is drawn for weights that have no memory yet: it would go nowhere, and PyTorch asks SymPy how."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            tensor = given["tensor"] if "tensor" in given else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)


def _downloaded(name: str) -> Path | None:
    """Where a model of the Hub is on this machine, if it is."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def _check_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{name}' cannot be used ({str(error).splitlines()[0][:100]}): give cpu, or a CUDA "
            "device that this machine and its PyTorch have"
        ) from error
