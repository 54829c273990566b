"""Models and tokenizers from folders and the Hub: safetensors only, no remote code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from ..types import InputError, dtype_named
from .footprint import check_fits

BUNDLED = Path(__file__).parents[1] / "bundled"


def load(name_or_path: str | Path, device: str = "cpu", dtype: str | torch.dtype = "float32"):
    """(model, tokenizer) from a local folder, `bundled` or a Hub id: safetensors only, no remote code.

    Raises InputError when there is no such model, no safetensors in it, or no tokenizer, and, before weights are read,
    when they do not fit in memory.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()  # a bar for two milliseconds of loading is noise
    name = str(BUNDLED if str(name_or_path) == "bundled" else name_or_path)
    folder = Path(name)
    local = folder.is_dir()
    if local and not (folder / "config.json").exists():
        raise InputError(f"{name} has no config.json, expected a Hugging Face model folder")
    if local and not any(folder.glob("*.safetensors")):
        raise InputError(f"{name} has no .safetensors file (pickled weights are never loaded): convert it first")
    if not local and (folder.exists() or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise InputError(f"{name} is not a folder, expected a model folder, a Hub id or 'bundled'")
    dtype = dtype_named(dtype) if isinstance(dtype, str) else dtype
    _check_device(device)
    if (stored := folder if local else _downloaded(name)) is not None:
        check_fits(stored, name, device, dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=local
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model '{name}' could not be loaded ({' '.join(str(error).split())[:200]}): give a model "
            "folder, a Hub id that this machine can reach, or 'bundled'"
        ) from error
    nn.Module.to(model, device)
    return model.requires_grad_(False).eval(), tokenizer


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
