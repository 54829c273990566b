"""What is run on the pretended GPU and, for comparison, on the CPU: the public API on the bundled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import PreTrainedModel

from invert_fast import Beam, Continuous, Exhaustive, Inverter, PerStepProjection, PriorOrder, Recovery, States
from invert_fast.distributed.job import Job
from invert_fast.distributed.session import Session
from invert_fast.lens import linear_fit
from invert_fast.storage.states import write_states
from invert_fast.strategies.registry import BUILT_IN

from .. import zoo
from .families import IDS as OF_ZOO

LAYERS = (0, 2, -1)
TEXTS: tuple[Any, ...] = (
    "The small harbour town was still asleep",
    [526, 154, 3616, 3175],  # no text: the bundled lens takes the second of these for another
    [1465, 4030, 3999, 211, 4076, 3355],  # and here the fourth
    "A letter",
)
SHORT = ("The small town", "A letter")
# As they are built in, or with settings that end soon: what they run is the same. `auto` is for every layer.
STRATEGIES = {
    "auto": "auto",
    "speculative": "speculative",
    "beam": Beam(width=2),
    "continuous": Continuous(steps=24, candidates=4096, first_block=64, round=8),
    "sipit": PerStepProjection(max_steps=24),
    "prior": PriorOrder(first_block=64),
    "exhaustive": Exhaustive(block=2048),
}
assert set(STRATEGIES) == set(BUILT_IN)
BY_ITSELF = [name for name in STRATEGIES if name != "auto"]
SEARCHES = ("continuous", "sipit")  # with `cuda_graph=True` where there is a GPU
LONG = ("auto", "speculative")  # are given all texts, the others the short ones
Scene = Callable[[], list[Recovery]]


def scenes(device: str) -> Iterator[tuple[str, Scene]]:
    """Name by name; each is to be run before the next one is asked for. For processes of their own: the lenses of inner
    layers are fitted on a tenth of the usual, so that it takes a second and drafts are often wrong."""
    linear_fit._LENGTH, linear_fit._TOKENS_MOST = 12, 1536
    for layer in LAYERS:
        inverter = Inverter.from_pretrained("bundled", layer, device=device)
        states = inverter.capture(TEXTS)
        inverter.calibrate()
        yield f"auto, layer {layer}, first", lambda inv=inverter, s=states: inv.invert(s)
        yield f"auto, layer {layer}", lambda inv=inverter, s=states: inv.invert(s)
        yield f"auto, layer {layer}, two lanes", lambda inv=inverter, s=states: inv.invert(s, batch_size=2)
    yield "from a file", lambda: from_file(states, device)
    own = Inverter(zoo.build("mamba").to(device))
    found = own.capture(OF_ZOO)
    yield "own pass", lambda: own.invert(found, PriorOrder(first_block=64))
    apart = Inverter(spread(device))
    yield "spread", lambda: apart.invert(apart.capture(OF_ZOO), PriorOrder(first_block=64))
    few = inverter.capture(SHORT)
    for name in BY_ITSELF:
        strategy = STRATEGIES[name]
        given = states if name in LONG else few
        yield name, lambda given=given, strategy=strategy: inverter.invert(given, strategy)
    ids = torch.tensor([inverter.encode(SHORT[0])], device=device)
    logits = inverter.decoder.model(ids).logits[0].detach()
    yield "logits", lambda: inverter.invert_logits([logits, logits[:2].log_softmax(-1).cpu()])


def spread(device: str) -> PreTrainedModel:
    """A model as `device_map` spreads it: what comes behind the first block is on the CPU."""
    model = zoo.build("llama")
    body, there, here = model.get_decoder(), torch.device(device), torch.device("cpu")
    for module in (body.embed_tokens, body.rotary_emb, body.layers[0]):
        add_hook_to_module(module.to(there), AlignDevicesHook(execution_device=there))
    for module in (*body.layers[1:], body.norm, model.get_output_embeddings()):
        add_hook_to_module(module, AlignDevicesHook(execution_device=here))
    return add_hook_to_module(model, AlignDevicesHook(execution_device=there, io_same_device=True))


def from_file(states: list[States], device: str) -> list[Recovery]:
    """As `invert-fast invert` does it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "states.safetensors"
        rows = [one.hidden for one in states]
        write_states(path, rows, [*map(len, rows)], rows[0].shape[1], torch.float32, {})
        session = Session(Job(path, "bundled"), device)
        session.prepare()
        recovered = {one.index: one.recovery for one in session.recover(range(len(states)), session.lengths, False)}
    return [recovered[index] for index in range(len(states))]


def truth(inverter: Inverter, scene: str) -> list[list[int]]:
    """The token ids that a scene has to find."""
    if scene in ("own pass", "spread"):
        return OF_ZOO
    if scene.startswith("logits"):
        return [inverter.encode(SHORT[0]), inverter.encode(SHORT[0])[:2]]
    return [inverter.encode(text) for text in (TEXTS if scene.startswith((*LONG, "from a file")) else SHORT)]


def figures(found: Sequence[Recovery] | dict[str, Any]) -> dict[str, Any]:
    """What is compared of what a scene found."""
    if isinstance(found, dict):
        return found
    return {"tokens": [r.token_ids.tolist() for r in found], "certified": [bool(r.certified) for r in found]}
