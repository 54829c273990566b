"""What is audited: which layers, precisions and defences, and how each of their cells is attacked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..types import InputError

UNDEFENDED = "none"
READ_OFF = "read-off"  # the strategy of defended cells, see `read_off`
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_PRECISIONS = ("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2", "int8")


@dataclass(frozen=True)
class Cell:
    """One combination that texts are inverted under. layer: by its canonical name; precision: what the states were
    rounded to, behind the defence; defence: as `parse_defence` reads it, or `none`; strategy: a name."""

    layer: str
    precision: str
    defence: str
    strategy: str

    def __str__(self) -> str:
        return " · ".join((self.layer, self.precision, self.defence, self.strategy))


@dataclass(frozen=True)
class Settings:
    """What to audit.

    layers: as `Inverter` takes them, `last`, or `all`: the embeddings, the output of each block, and the final norm;
    precisions: what states are rounded to (fp32, bf16, fp16, fp8_e4m3, fp8_e5m2, int8); defences: as `parse_defence`
    reads them, beside `none`, which is always there; strategies: how undefended states are inverted; max_tokens: of
    each text; special: texts get what the tokenizer adds; seed: of all that is random; measure: on how many of
    the first texts the next-token loss is measured. Raises InputError for a name that is unknown.
    """

    layers: tuple[str, ...] = ("all",)
    precisions: tuple[str, ...] = ("float32",)
    defences: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ("auto",)
    max_tokens: int | None = None
    special: bool = True
    seed: int = 0
    measure: int = 64

    def __post_init__(self):
        from ..defences.spec import parse_defence
        from ..strategies import registry

        precisions = _unique(_SHORT.get(name, name) for name in self.precisions)
        if unknown := [name for name in precisions if name not in _PRECISIONS]:
            raise InputError(
                f"precision '{unknown[0]}' is unknown, expected one of {', '.join((*_SHORT, *_PRECISIONS[3:]))}"
            )
        if unknown := [name for name in self.strategies if name not in registry.names()]:
            raise InputError(f"strategy '{unknown[0]}' is unknown, expected one of {', '.join(registry.names())}")
        if not (self.layers and precisions and self.strategies):
            raise InputError("there are no layers, precisions or strategies, expected one of each at least")
        specs = _unique(parse_defence(name).spec for name in self.defences if name != UNDEFENDED)
        for name, value in (("precisions", precisions), ("defences", specs), ("strategies", _unique(self.strategies))):
            object.__setattr__(self, name, value)

    def layer_names(self, blocks: int, tied: bool = True) -> tuple[str, ...]:
        """Canonical names of the layers, of a model of so many blocks."""
        from ..model.layer import Layer

        every = ["embeddings", *(f"block:{k}" for k in range(blocks)), "final_norm"]
        names = [name for given in self.layers for name in (every if given == "all" else [given])]
        return _unique(Layer(-1 if name == "last" else name, blocks, tied).name for name in names)

    def cells(self, layers: tuple[str, ...]) -> tuple[Cell, ...]:
        """All cells in the order in which they are worked on: what can be shared lies next to each other."""
        return tuple(
            Cell(layer, precision, defence, strategy)
            for layer in layers
            for defence in (UNDEFENDED, *self.defences)
            for precision in self.precisions
            for strategy in (self.strategies if defence == UNDEFENDED else (READ_OFF,))
        )

    def as_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _unique(names) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
