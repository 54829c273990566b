"""States that another tool took of a model: what they are of, and how they are to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inverter import Inverter
from ..model.reading import AS_CAPTURED, Reading
from ..types import InputError, Recovery


@dataclass(frozen=True)
class Tapped:
    """states: `[T, D]`, `[B, T, D]`, or a list of such; layer, reading: as for `Inverter`; attention_mask: of a padded
    batch, `[B, T]`."""

    states: Any
    layer: str
    reading: Reading = AS_CAPTURED
    attention_mask: Any = None

    def inverter(self, model: Any, tokenizer: Any = None) -> Inverter:
        """An inverter of this layer and reading. model: the Hugging Face model of the capture with its tokenizer, a
        name or folder, `bundled`, or another inverter of it."""
        if isinstance(model, (str, Path)):
            return Inverter.from_pretrained(model, self.layer, reading=self.reading)
        if isinstance(model, Inverter):
            decoder = model.decoder
            if (decoder.layer.name, decoder.reading) == (self.layer, self.reading):
                return model
            model, tokenizer = decoder.model, decoder.tokenizer
        if any(type(module).__module__.startswith("transformer_lens") for module in model.modules()):
            raise InputError(
                "a TransformerBridge has taken this model over and may have rewritten its weights, expected an "
                "untouched one: give its name or folder, or give the bridge a copy (copy.deepcopy)"
            )
        return Inverter(model, tokenizer, self.layer, reading=self.reading)

    def invert(self, model: Any, tokenizer: Any = None, **options: Any) -> list[Recovery]:
        """The texts, in order; model, tokenizer: as `inverter` takes them; options: as `Inverter.invert`."""
        return self.inverter(model, tokenizer).invert(self.states, attention_mask=self.attention_mask, **options)
