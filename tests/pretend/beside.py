"""What the public API does beside inverting states as they are: edits, noise, readings, explanations, single vectors,
extraction, audits, fits; and what it does where a vocabulary is large."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from invert_fast import Beam, Fit, Inverter, Noise, PriorOrder, Reading, Recovery, States
from invert_fast.audit import Settings, audit
from invert_fast.audit.read_off import read_off
from invert_fast.engine import calibrate
from invert_fast.explain import explain
from invert_fast.extract import Client, LocalApi, Restrictions, extract
from invert_fast.lens import mixture
from invert_fast.logits import VectorSearch

from ..families import build
from ..small_fits import shrink
from . import families

TEXTS = ("The small harbour town was still asleep when", "A letter from the mayor was on the table in the hall")
NOISE = Noise("gaussian", 0.05)
INNER = 1
Told = dict[str, Any]


def told(found: Sequence[Recovery]) -> Told:
    return {"tokens": [r.token_ids.tolist() for r in found], "status": [r.status.tolist() for r in found]}


class Bundled:
    """The bundled model on a device, and rows of it to be changed, which are there as well."""

    def __init__(self, device: str, layer: str | int = -1):
        self.device = device
        self.inverter = Inverter.from_pretrained("bundled", layer, device=device)
        self.ids = [self.inverter.encode(text, special=True) for text in TEXTS]
        self.rows = [rows.float().to(device) for rows in self.inverter.capture_ids(self.ids)]

    def random(self, *shape: int) -> Tensor:
        """The same numbers on every device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def noisy(self) -> list[Tensor]:
        level = [rows.square().mean(-1, keepdim=True).sqrt() for rows in self.rows]
        return [rows + NOISE.sigma * of * self.random(*rows.shape) for rows, of in zip(self.rows, level, strict=True)]


def scenes(device: str) -> Iterator[tuple[str, Callable[[], Told]]]:
    """Name by name, to be run in this order: what is fitted changes what comes after. For processes of their own: fits
    are made to end in a second."""
    shrink(pytest.MonkeyPatch())
    calibrate._TEXTS, calibrate._SINGLES, calibrate._STEPPED, calibrate._PAIRS = 24, 64, 4, 24
    mixture._A_NUMBER, mixture._SINGLES, mixture._KEPT = 8, 300, 16
    os.environ["INVERT_FAST_SHARPEN"] = "on"
    last, inner = Bundled(device), Bundled(device, INNER)
    inverter, rows = last.inverter, last.rows[0]
    yield "stored in bf16", lambda: told(inverter.invert([States(r.bfloat16(), dtype="bfloat16") for r in last.rows]))
    yield "noise", lambda: told(inverter.invert([States(r, noise=NOISE) for r in last.noisy()]))
    yield "noise, told by itself", lambda: told(inverter.invert(last.noisy(), noise="auto"))
    yield "noise, a wide beam", lambda: told(inverter.invert(last.noisy(), Beam(width=4), noise=NOISE))
    yield "read off", lambda: told(read_off(inverter, [States(r) for r in last.noisy()]))
    yield "a reading", lambda: told(_centered(inverter).invert([r - r.mean(-1, keepdim=True) for r in last.rows]))
    yield "score", lambda: {"exact": inverter.score(inverter.invert(last.rows), last.ids).exact_match}
    for name, one in (("last", last), ("inner", inner)):
        yield f"explain, {name}", lambda one=one: _explained(one.inverter)
    for edit, changed in _edits(inner).items():
        yield f"mend {edit}", lambda edit=edit, rows=changed: told(inner.inverter.mend(rows, edit))
    for what, changed in {"nothing": rows, "gap": _edits(last)["gap"], "layer": inner.rows[0]}.items():
        yield f"diagnose {what}", lambda rows=changed: _diagnosed(inverter, rows)
    logits = inverter.decoder.model(torch.tensor([last.ids[0][:2]], device=device)).logits[0].detach()
    few = VectorSearch(rounds=3)
    yield "one vector", lambda: {"tokens": [r.token_ids for r in inverter.invert_vector(logits[-1], 2, settings=few)]}
    yield "extract", lambda: _extracted(inverter)
    yield "audit", lambda: _audited(inverter)
    young = Inverter(build("llama", blocks=2).to(device))
    yield "fit", lambda: {"steps": young.fit("learned", Fit(width=32, layers=1, steps=4)).steps}
    yield "fit, deeper", lambda: {"deeper": young.fit("linear", Fit(minutes=1e-4)).deeper}
    for name, scene in families.scenes(device, families.FEW):
        yield name, lambda scene=scene: told(scene())
    yield from large(device, young)


def _centered(inverter: Inverter) -> Inverter:
    decoder = inverter.decoder
    return Inverter(decoder.model, decoder.tokenizer, decoder.layer.name, reading=Reading(centered=True))


def _edits(of: Bundled) -> dict[str, Tensor]:
    """The first text's rows, and what was done to them, by what mends it."""
    rows, other = of.rows
    gap, turns = rows.clone(), [row for pair in zip(rows, other, strict=False) for row in pair]
    gap[3] = 0
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    steered = rows + 0.5 * rows.norm(dim=-1).median() * of.random(rows.shape[1]) / rows.shape[1] ** 0.5
    return {
        "gap": gap,
        "front": rows[1:],
        "order": torch.stack([rows[i] for i in order.tolist()]),
        "steering": steered,
        "mixed": torch.stack(turns),
    }


def _explained(inverter: Inverter) -> Told:
    found = explain(inverter, TEXTS[0])
    return {key: [getattr(one, key) for one in found.positions] for key in ("draft", "found_id", "status", "reason")}


def _diagnosed(inverter: Inverter, rows: Tensor) -> Told:
    found = inverter.diagnose(rows)
    return {"verdict": found.verdict, "options": found.options, "layer": found.layer}


def _extracted(inverter: Inverter) -> Told:
    found = extract(Client(LocalApi(inverter, Restrictions(top=5))), TEXTS[0])
    return {"first": int(found.log_probs.argmax()), "method": found.method, "complete": found.complete}


def _audited(inverter: Inverter) -> Told:
    settings = Settings(("last",), ("float32", "bfloat16"), ("gaussian:0.5",), max_tokens=8)
    with TemporaryDirectory() as folder:
        cells = audit(inverter, TEXTS, Path(folder) / "report", settings)["cells"]
    return {"cells": [[cell[key] for key in ("precision", "defence", "token_accuracy", "certified")] for cell in cells]}


def large(device: str, young: Inverter) -> Iterator[tuple[str, Callable[[], Told]]]:
    """As where a vocabulary is large: its scores are listed, never all kept; lenses are sharpened in use."""
    for module in [*sys.modules.values()]:
        if module.__name__.startswith("invert_fast.") and hasattr(module, "MANY_TOKENS"):
            module.MANY_TOKENS = 1  # type: ignore[attr-defined]
    for layer in (INNER, -1):
        one = Bundled(device, layer)
        inverter, where = one.inverter, "last" if layer == -1 else "inner"
        yield f"large, {where}, first", lambda inv=inverter, one=one: told(inv.invert(one.rows))
        yield f"large, {where}", lambda inv=inverter, one=one: told(inv.invert(one.rows))
        for name, strategy in (("prior", PriorOrder()), ("beam", Beam(width=2))):
            how = f"large, {where}, {name}"
            yield how, lambda inv=inverter, one=one, strategy=strategy: told(inv.invert(one.rows, strategy))
        yield f"large, {where}, noise", lambda inv=inverter, one=one: told(inv.invert(one.noisy(), noise="auto"))
        yield (
            f"large, {where}, read off",
            lambda inv=inverter, one=one: told(read_off(inv, [*map(States, one.noisy())])),
        )
        yield f"large, {where}, explain", lambda inv=inverter: _explained(inv)
        yield f"large, {where}, diagnose", lambda inv=inverter, one=one: _diagnosed(inv, one.rows[0])
    for edit in ("gap", "order", "steering"):
        rows = _edits(one)[edit]
        yield f"large, mend {edit}", lambda edit=edit, rows=rows: told(inverter.mend(rows, edit))
    yield "large, fit", lambda: {"deeper": young.fit("learned", Fit(minutes=1e-4)).deeper}
