"""Inverters and trainings as files: safetensors, every name, shape and value checked before it is used. No pickle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..storage import checkpoint as stored
from ..storage.atomic import write_whole
from ..storage.checkpoint import as_bytes
from ..types import InputError
from .bodies import from_config, load_tokenizer
from .network import PromptInverter, Shape
from .settings import Architecture, View

FORMAT = "lmi-1"
WEIGHTS, TRAINING = "inverter.safetensors", "training.safetensors"
_LARGEST_VOCABULARY = 2**20


def write(path: Path, net: PromptInverter, about: dict[str, Any], more: dict[str, Tensor] | None = None) -> None:
    """Weights, shape and what else is to be known; whole or not at all. more: tensors of a training to go on with."""
    about = {"format": FORMAT, "shape": asdict(net.shape), **about}
    tensors = {f"net.{name}": tensor for name, tensor in _own(net).items()}
    write_whole(path, as_bytes(tensors | (more or {}), about))


def read(path: str | Path) -> tuple[PromptInverter, dict[str, Any]]:
    """The inverter in a file, or in a training's output folder, and what is said of it.

    Raises InputError when there is none, when it is damaged, of another format, or not what it says it is.
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    about, tensors = read_tensors(path)
    try:
        shape = about["shape"]
        view, architecture = View(**shape["view"]), Architecture(**shape["architecture"])
        vocab_size, config = int(shape["vocab_size"]), dict(shape["config"])
        if not 1 <= vocab_size <= _LARGEST_VOCABULARY:
            raise ValueError(f"a vocabulary of {vocab_size}")
        shape = Shape(vocab_size, view, architecture, config)
    except (KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        raise InputError(f"{path} does not describe an inverter ({error}): train one with `logits train`") from error
    view.check(vocab_size)
    net = PromptInverter(
        shape, from_config(config), None if architecture.body == "tiny" else load_tokenizer(architecture.body)
    )
    fill(net, tensors, path)
    return net.eval(), about


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what is said, tensors) of a file; InputError unless it is one of ours and whole."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected an inverter: train one with `invert-fast logits train`")
    try:
        about, tensors = stored.read(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"format {about.get('format')}")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not an inverter ({' '.join(str(error).split())[:120]}), expected a safetensors file of format "
            f"{FORMAT}: train one with `invert-fast logits train`"
        ) from error
    return about, tensors


def fill(net: PromptInverter, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy a file's weights into an inverter; InputError for one that is missing, of another shape or not finite."""
    own = _own(net)
    missing = [name for name in own if f"net.{name}" not in tensors]
    if missing:
        raise InputError(f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors: it was not written whole")
    unknown = [name for name in tensors if name.startswith("net.") and name[4:] not in own]
    if unknown:
        raise InputError(f"{path} has {unknown[0]}, which this inverter has not: it is of another architecture")
    for name, tensor in own.items():
        given = tensors[f"net.{name}"]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise InputError(
                f"{path}: {name} is {list(given.shape)} {given.dtype}, expected {list(tensor.shape)} {tensor.dtype}"
            )
        if given.is_floating_point() and not bool(given.isfinite().all()):
            raise InputError(f"{path}: {name} is not finite: the training diverged or the file is damaged")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[f"net.{name}"])


def _own(net: PromptInverter) -> dict[str, Tensor]:
    """Every tensor once: tied weights share storage and are stored under their first name."""
    seen: dict[int, str] = {}
    out = {}
    for name, tensor in net.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen[tensor.data_ptr()] = name
            out[name] = tensor
    return out
