"""How much of a text its hidden states give away: captured, inverted, scored. What the evaluation tools measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from ..types import InputError

if TYPE_CHECKING:
    from ..inverter import Inverter
    from ..reports.score import ScoredText

MEASURES = ("token_accuracy", "exact_match", "certified")


@lru_cache(maxsize=8)
def inverter_of(name: str, layer: int | str = -1) -> Inverter:
    """The inverter of a model by its name, folder or `bundled`, loaded once."""
    from ..inverter import Inverter

    return Inverter.from_pretrained(name, layer)


def leak(
    inverter: Inverter,
    text: Any,
    *,
    store_dtype: str = "float32",
    noise: float = 0.0,
    seed: int = 0,
    strategy: str = "auto",
) -> ScoredText:
    """What comes back of a text (or chat, or ids) from its states alone.

    store_dtype: the precision in which they leak; noise: of a defence, normal, as a share of each row's length, the
    same for the same text and seed. Calibration knows nothing of it: what it moves too far is not certified.
    """
    import torch

    (states,) = inverter.capture([text], store_dtype=store_dtype)
    if noise:
        drawn = torch.randn(
            states.hidden.shape, generator=torch.Generator().manual_seed(seed ^ crc32(repr(text).encode()))
        )
        length = states.hidden.float().norm(dim=-1, keepdim=True) / states.hidden.shape[-1] ** 0.5
        states = replace(states, hidden=(states.hidden.float() + noise * length * drawn).to(states.hidden.dtype))
    (found,) = inverter.invert(states, strategy)
    return inverter.score([found], [text]).texts[0]


def measures(one: ScoredText) -> dict[str, float]:
    """`token_accuracy`, `exact_match` and the `certified` share of one text, each from 0 to 1."""
    return dict(zip(MEASURES, (one.token_accuracy or 0.0, float(one.exact), one.certified or 0.0), strict=True))


def texts_from(path: str | Path | None) -> list[str]:
    """Texts of a file: .jsonl with a `text` each, .txt with one a line; None for the 36 bundled sentences."""
    from ..storage.prompts import read_prompts

    return read_prompts(Path(path)) if path is not None else read_prompts(_SENTENCES)


_SENTENCES = Path(__file__).parents[1] / "bundled" / "sentences.txt"


def listed(value: Any) -> list[str]:
    """Layers as options give them: a list, one, or several behind each other with `+` (commas part options)."""
    if isinstance(value, Mapping) or value is None:
        raise InputError(f"layers are {value!r}, expected names or indices: 'block:0+final_norm', or a list")
    parts = value if isinstance(value, Iterable) and not isinstance(value, str) else str(value).split("+")
    return [str(part).strip() for part in parts]
