"""What trainings write down to go on from: safetensors, with all that is said of the tensors as JSON in `about`.

Step i of a training is a function of its seed and of i alone (`step_seed`), so that one that was killed goes on from
its last checkpoint to the very same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .json_text import parse


def step_seed(seed: int, step: int) -> int:
    """For the random numbers of one step."""
    return (seed * 1_000_003 + step * 7_919 + 12_345) % (1 << 62)


def as_bytes(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> bytes:
    """The file, for `atomic.write_whole` or the cache."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, {"about": json.dumps(about)})


def read(path: Path, device: str = "cpu") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(about, tensors); SafetensorError, OSError, KeyError or ValueError for what is no such file."""
    with safe_open(path, framework="pt", device=device) as file:
        about = parse((file.metadata() or {})["about"])
        if not isinstance(about, dict):
            raise ValueError(f"`about` is {about!r}")
        return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """The state of an optimizer as named tensors, `prefix` before each name."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: tuple[str, ...], prefix: str = ""
) -> None:
    """Give an optimizer what `optimizer_tensors` named: of each parameter `names`, all but `step` of its shape.

    KeyError or ValueError, and nothing changed, where one is missing, of another shape or not finite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {}
    for index, parameter in enumerate(parameters):
        own = {name: tensors[f"{prefix}{index}.{name}"] for name in names}
        for name, value in own.items():
            if name != "step" and (value.shape != parameter.shape or not bool(value.isfinite().all())):
                raise ValueError(f"{prefix}{index}.{name} is {list(value.shape)}, or not finite")
        state["state"][index] = own
    optimizer.load_state_dict(state)
