"""Lenses as files: safetensors in the cache folder, keyed by model, layer and what they were fitted for."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..model.decoder import Decoder
from ..model.load import BUNDLED
from ..model.vocabulary import Vocabulary
from ..storage import cache
from ..storage.json_text import parse
from .files import read_or_warn, whole_tensor
from .learned import LearnedLens
from .linear import LinearLens
from .prior import DraftPrior
from .repair import read_repair
from .sums_store import learns, write_sums

log = logging.getLogger("invert_fast")

_LINEAR, _LEARNED = "linear-13", "learned-2"
SHIPPED = BUNDLED / "lens.safetensors"
_Lens = TypeVar("_Lens", LinearLens, LearnedLens)


def linear_name(decoder: Decoder, seed: int) -> str:
    """File name, in the cache folder, of the linear lens of this model and layer."""
    return cache.key(decoder.identity, _LINEAR, str(seed)) + ".safetensors"


def linear_lens(decoder: Decoder, vocabulary: Vocabulary, seed: int = 0, again: bool = False) -> LinearLens:
    """The linear lens of this model and layer from the cache folder, else fitted now (seconds) and kept there.

    again: fit it whatever the folder holds.
    """
    name = linear_name(decoder, seed)
    path = None if again else cache.path(name)
    stored = read_or_warn(path, lambda path: _read_linear(path, decoder, vocabulary), "fitting it again")
    if stored is not None:
        log.debug("%s; read from %s", _in_words(stored, decoder), path)
        return stored
    log.info(
        "fitting the linear lens of %s, %s (once; kept in the cache folder)", decoder.fingerprint(), decoder.layer.name
    )
    from .linear_fit import fit_linear  # and with it what generates text

    start, lens = time.perf_counter(), fit_linear(decoder, vocabulary, seed)
    count, taken = 0 if lens.sums is None else lens.sums.count, time.perf_counter() - start
    keep_linear(lens, decoder, seed)
    log.debug(
        "%s; fitted on %d tokens that the model writes, of prose and at random, in %.1f s; %s",
        *(_in_words(lens, decoder), count, taken, cache.kept(cache.path(name))),
    )
    return lens


def _in_words(lens: LinearLens, decoder: Decoder) -> str:
    use = f" and sharpened by {lens.used} of use" if lens.used else ""
    right = f"{100 * lens.accuracy:.1f} % of held-out tokens right{use}"
    return f"linear lens of {decoder.fingerprint()}, {decoder.layer.name}: {right}"


def keep_linear(lens: LinearLens, decoder: Decoder, seed: int) -> None:
    """Write a linear lens to the cache folder, and what it was solved from, if it has that with it."""
    about = {"format": _LINEAR, "prior": _told(lens.prior), "used": lens.used, "rank": lens.rank}
    if lens.sums is not None and learns(lens.accuracy):
        write_sums(decoder, seed, lens.sums)
    lens.sums = None
    cache.write(linear_name(decoder, seed), save(_linear_tensors(lens), metadata=_about(lens, about)))


def learned_name(decoder: Decoder, states_dtype: str) -> str:
    """File name, in the cache folder, of the learned lens of this model and layer for states of this precision."""
    return cache.key(decoder.identity, _LEARNED, states_dtype) + ".safetensors"


def learned_lens(decoder: Decoder, vocabulary: Vocabulary, states_dtype: str = "any") -> LearnedLens | None:
    """The learned lens for states of this precision, else that for any, else the one that ships with the package; None
    when no lens was ever fitted for this model and layer."""
    own = [cache.path(learned_name(decoder, dtype)) for dtype in dict.fromkeys((states_dtype, "any"))]
    for path in [*own, SHIPPED if SHIPPED.is_file() else None]:
        found = read_or_warn(path, lambda path: read_learned(path, decoder, vocabulary), "fit it again")
        if found is not None:
            log.debug("learned lens of %s, %s; read from %s", decoder.fingerprint(), decoder.layer.name, path)
            return found
    return None


def write_learned(lens: LearnedLens, decoder: Decoder, about: dict) -> bytes:
    """The file of a learned lens. The transformer's weights are stored in fp16, the closed-form maps in fp32."""
    tensors = {name: t for name, t in _linear_tensors(lens.linear).items() if name != "rest.project"}
    for name, tensor in lens.state_dict().items():
        tensors[f"lens.{name}"] = (tensor.half() if _in_half(name) else tensor).contiguous()
    described = {"format": _LEARNED, "width": lens.width, "layers": lens.layers, "weighs": lens.weighs, **about}
    described |= {"linear_accuracy": lens.linear_accuracy}
    described |= {"model": decoder.fingerprint(), "layer": _place(decoder)}
    return save(tensors, metadata=_about(lens, described))


def _place(decoder: Decoder) -> str:
    """What states a lens is of. Where texts begin is not part of it: the lens sees no positions."""
    return " ".join(part for part in (decoder.layer.name, decoder.reading.kind) if part)


def round_weights(lens: LearnedLens) -> None:
    """Round a lens to what its file will hold, so that the one just fitted and the one read back are the same."""
    with torch.no_grad():
        for name, parameter in lens.named_parameters():
            if _in_half(name):
                parameter.copy_(parameter.half())


def _in_half(name: str) -> bool:
    return name.split(".")[0] in ("enter", "body", "leave", "gate")


def read_learned(path: Path, decoder: Decoder, vocabulary: Vocabulary) -> LearnedLens | None:
    """The learned lens in a file, None when it is of another model or layer; ValueError unless it is whole."""
    with safe_open(path, framework="pt", device=str(decoder.device)) as file:
        about = parse((file.metadata() or {})["about"])
        if (about["model"], about["layer"]) != (decoder.fingerprint(), _place(decoder)):
            return None
        width, layers = int(about["width"]), int(about["layers"])
        if not (1 <= width <= 4096 and 1 <= layers <= 64):
            raise ValueError(f"width {width}, {layers} layers")
        D, out = decoder.width, vocabulary.embedding.shape[1]
        _check_layers(file, D, width, layers)  # before anything of that size is made
        both = whole_tensor(file, "lens.project", (D, 2 * out))
        rest = torch.cat([both[:, :out], both[:, out:], whole_tensor(file, "lens.constant", (out,))[None]])
        parts = _parts(file, D, out, {"rest": rest})
        linear = _listed(LinearLens(vocabulary, parts, energies=_energies(file, vocabulary)), file)
        lens = LearnedLens(linear, width, layers, about.get("weighs") is True)
        state = {
            name: whole_tensor(file, f"lens.{name}", tuple(like.shape)).to(like.dtype)
            for name, like in lens.state_dict().items()
        }
    lens.load_state_dict(state)
    lens.linear_accuracy = float(about["linear_accuracy"])
    return _described(lens.freeze(), about)


def _check_layers(file, inputs: int, width: int, layers: int) -> None:
    """ValueError where the tensors of a file are not those of so wide and deep a lens."""
    shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    deep = len({name.split(".")[2] for name in shapes if name.startswith("lens.body.")})
    if shapes.get("lens.enter.weight") != [2 * width, inputs] or deep != layers:
        raise ValueError(f"width {width}, {layers} layers, but not in its tensors")


def _read_linear(path: Path, decoder: Decoder, vocabulary: Vocabulary) -> LinearLens:
    with safe_open(path, framework="pt", device=str(decoder.device)) as file:
        about = parse((file.metadata() or {})["about"])
        parts = _parts(file, decoder.width, vocabulary.embedding.shape[1], {})
        lens = LinearLens(vocabulary, parts, energies=_energies(file, vocabulary))
        lens.prior, lens.used = _prior(file, about, decoder.width), int(about["used"])
        lens.rank = _rank(about["rank"], vocabulary.embedding.shape[1])
        return _described(_listed(lens, file), about)


def _rank(said: object, most: int) -> int | None:
    if said is None:
        return None
    if type(said) is not int or not 1 <= said <= most:
        raise ValueError(f"a rank of {said!r}")
    return said


def _linear_tensors(lens: LinearLens) -> dict[str, Tensor]:
    tensors = {
        f"{name}.{what}": getattr(part, what).contiguous()
        for name, part in lens.parts.items()
        for what in ("project", "gram")
    }
    if lens.metric is None:
        return tensors
    energies = {f"{name}.energy": part.energy for name, part in lens.parts.items()}
    tensors |= energies | {"metric": lens.metric.clone()}  # it may be the gram itself
    return tensors if lens.prior is None else tensors | {"normaliser": lens.prior.normaliser}


def _energies(file, vocabulary: Vocabulary) -> dict[str, Tensor]:
    names = [name for name in ("first", "rest", "change") if f"{name}.energy" in file.keys()]  # noqa: SIM118
    return {name: whole_tensor(file, f"{name}.energy", (vocabulary.size,)) for name in names}


def _listed(lens: LinearLens, file) -> LinearLens:
    """With what its lists are made by, if it has any."""
    if "metric" in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
        lens.list_by(whole_tensor(file, "metric", tuple(lens.parts["rest"].gram.shape)))
    return lens


def _prior(file, about: dict, width: int) -> DraftPrior | None:
    if "normaliser" not in file.keys():  # noqa: SIM118
        return None
    normaliser = whole_tensor(file, "normaliser", (width + 1,))
    numbers = {name: tuple(float(x) for x in about["prior"][name]) for name in ("weights", "edges", "sureness")}
    if not all(math.isfinite(x) for many in numbers.values() for x in many):
        raise ValueError(f"a prior of {numbers}")
    return DraftPrior(normaliser, **numbers)


def _told(prior: DraftPrior | None) -> dict:
    """What of it is no tensor."""
    return {} if prior is None else {"weights": prior.weights, "edges": prior.edges, "sureness": prior.sureness}


def _parts(file, width: int, out: int, projects: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The three closed-form maps in a file; `projects` has those that are stored otherwise."""
    parts = {}
    for name, inputs in (("first", width + 1), ("rest", 2 * width + 1), ("change", width)):
        project = projects[name] if name in projects else whole_tensor(file, f"{name}.project", (inputs, out))
        parts[name] = project, whole_tensor(file, f"{name}.gram", (out, out))
    return parts


def _about(lens: LinearLens | LearnedLens, more: dict) -> dict[str, str]:
    return {"about": json.dumps({"accuracy": lens.accuracy, "repair": asdict(lens.repair), **more})}


def _described(lens: _Lens, about: dict) -> _Lens:
    lens.accuracy, lens.repair = float(about["accuracy"]), read_repair(about["repair"])
    if not 0 <= lens.accuracy <= 1:
        raise ValueError(f"accuracy {lens.accuracy}")
    return lens
