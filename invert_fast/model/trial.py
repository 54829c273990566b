"""The test at load: does our pass, or else the model's own in pieces, give what its own gives of a whole text?

It is made on the model itself, with a text longer than its sliding window, and not by a list of families: what a family
is called says little of how a checkpoint attends. Whole, after a prefix, and as a fan-out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ops
from ..calls.interrupts import raise_interrupt
from ..types import InputError
from . import attention
from .own_pass import MOST_AT_ONCE, OwnPass, joined, picked
from .prefix import JointCall, PrefixCall
from .twin import body_of, find_blocks, structural_twin

if TYPE_CHECKING:
    from .decoder import Decoder

log = logging.getLogger("invert_fast")

SHORT, LONG = 40, 1024  # tokens of a text where nothing asks for more; at most
_BEYOND, _TOGETHER = 8, 8  # tokens beyond what is asked for; neighbours of whose distances the median counts
_NUMBERS = 1 << 26  # that the largest tensor of one call of a model's own pass may have
JOINS_FROM = 20_000_000  # parameters of a model whose passes take their time by reading them
_SAME_SHAPE = 20.0  # by how much two passes of one shape agree better than those of two ways to compute
OFF = {torch.float64: 2e-3, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
FAILS = (TypeError, AttributeError, ValueError, RuntimeError, LookupError, NotImplementedError, AssertionError)


def text(decoder: Decoder) -> Tensor:
    """Token ids `[n]`: a BOS where there is one, then any; longer than the window and than rope was made for."""
    wanted = [own + _BEYOND for own in _turns(decoder.model.config.get_text_config()) if own + _BEYOND <= LONG]
    count = min(max(SHORT, *wanted, 0), decoder.max_length)
    usable = torch.ones(decoder.usable_ids, dtype=torch.bool, device=decoder.device)
    spoilt = decoder.embedding.spoilt
    usable[spoilt[spoilt < decoder.usable_ids]] = False
    rows = usable.nonzero().flatten()
    ids = rows[torch.randint(len(rows), (count,), generator=torch.Generator().manual_seed(0)).to(rows.device)]
    bos = getattr(decoder.tokenizer, "bos_token_id", None)
    if bos is not None and bos < decoder.vocab_size:
        ids[0] = bos
    return ids


def _turns(config) -> list[int]:
    """Lengths at which a model begins to treat texts in another way."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = [
        getattr(config, name, None) for name in ("sliding_window", "attention_window_size", "attention_chunk_size")
    ]
    return [n for n in (*found, rope.get("original_max_position_embeddings")) if isinstance(n, int)]


def longest_text(config) -> int:
    """Tokens that a text may have. Where rotary embeddings of all positions change once a text grows beyond a length,
    states of its beginning depend on how long it became: such texts are not recovered token by token."""
    names = ("max_position_embeddings", "max_seq_len")
    most = min(limit for name in names if (limit := getattr(config, name, None) or 2**31))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        first = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        most = min(most, first or most)
    return most


@torch.no_grad()
def choose_path(decoder: Decoder, path: str | None) -> None:
    """Give a decoder our twin (`body`) where that gives the states of the model's own forward pass, else that pass
    (`own`). path: which of them, untried. Raises InputError for a model that looks ahead: what a certificate says of a
    token, given all before it, means nothing there."""
    model, layer, tried = decoder.model, decoder.layer, path is None
    family, ids = model.config.model_type, text(decoder)
    states = decoder.capture(ids[None])[0] if tried else None
    if states is not None and not bool(states.isfinite().any()):
        raise InputError(f"the states of this '{family}' are not finite, expected numbers: its weights are damaged")
    if path != "own":
        try:
            decoder.body = structural_twin(model, layer.depth, layer.normed, attention.NAME)
            trouble = None if states is None else trouble_of_ours(decoder, ids, states)
        except (InputError, *FAILS) as error:
            raise_interrupt(error)
            trouble = " ".join(str(error).split())[:200]
        if trouble is None:
            return
        log.warning("'%s' runs by its own forward pass, which is slower: %s", family, trouble)
        decoder.__dict__.pop("body", None)  # with the weights that it packed
    decoder.own = OwnPass(model, layer)
    if states is not None and (trouble := trouble_of_own(decoder.own, ids, states)) is not None:
        raise InputError(f"model family '{family}' cannot be inverted: {trouble}")


@torch.no_grad()
def trouble_of_ours(decoder: Decoder, ids: Tensor, own: Tensor) -> str | None:
    """What is wrong with our pass over `ids [n]`, of which `own [n, D]` are the states; None: nothing."""
    n, at = len(ids), torch.arange(len(ids), device=ids.device)[None]
    try:
        call = PrefixCall(causal=True)
        whole = decoder.run(decoder.embed(ids)[None], at, call)[0]
        if len(call.own) != decoder.blocks:
            return f"{decoder.blocks - len(call.own)} of its {decoder.blocks} blocks do not attend"
        if wrong := _first_wrong(whole, own):
            return f"our states are {wrong[1]:.1e} off its own{_where(decoder, ids, wrong[0])}"
        for causal, begun in ((True, max(0, n - _TOGETHER)), (False, n - 1)):
            rest = decoder.run(decoder.embed(ids[None, begun:]), at[:, begun:], _after(call, begun, causal))[0]
            if wrong := _first_wrong(rest, own[begun:]):
                return f"after a prefix of {begun} tokens our states are {wrong[1]:.1e} off its own"
    except FAILS as error:
        raise_interrupt(error)
        return f"it does not run in our way ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    decoder.joins = decoder.parameters > JOINS_FROM and _joins(decoder, ids, call, own)
    return None


def _joins(decoder: Decoder, ids: Tensor, whole: PrefixCall, own: Tensor) -> bool:
    """Whether a draft and a fan-out in one pass give what each gives alone."""
    n = len(ids)
    begun = max(0, n - _TOGETHER)
    calls = [(_after(whole, begun, True), 1, n - begun), (_after(whole, n - 1, False), 1, 1)]
    places = torch.tensor([*range(begun, n), n - 1], device=ids.device)
    try:
        found = decoder.run(decoder.embed(ids[places])[None], places[None], JointCall(calls))[0]
    except FAILS as error:
        raise_interrupt(error)
        return False
    return _first_wrong(found[:-1], own[begun:]) is None and _first_wrong(found[-1:], own[-1:]) is None


def _after(call: PrefixCall, begun: int, causal: bool) -> PrefixCall:
    """A pass behind the first `begun` tokens of a call."""
    if not begun or not call.own:
        return PrefixCall(causal)
    keys, values = zip(*(call.own[layer] for layer in sorted(call.own)), strict=True)
    keys, values = ([table[:, :, :begun] for table in tables] for tables in (keys, values))
    return PrefixCall(causal, keys, values, torch.tensor([begun], device=keys[0].device) if keys else None)


@torch.no_grad()
def trouble_of_own(own: OwnPass, ids: Tensor, states: Tensor) -> str | None:
    """Whether states depend on what comes before them alone (a text for what is wrong, else None). Settles too whether
    what the model keeps of a text can be gone on from."""
    half, others = len(ids) // 2, ids.roll(1)
    with _Largest(own) as largest:
        late = own.states(torch.cat([ids[:half], others[half:]])[None])[0]
    own.at_once = max(len(ids), min(MOST_AT_ONCE, _NUMBERS * len(ids) // max(1, largest.numbers)))
    if wrong := _first_wrong(late[:half], states[:half], strictness=_SAME_SHAPE):
        return (
            f"its state at position {wrong[0]} changes by {wrong[1]:.1e} when tokens from {half} on do, expected a "
            "decoder whose states depend on the tokens before them alone"
        )
    other = torch.cat([ids[:-1], others[-1:]])
    try:
        kept = [own.begin(ids[None, :-1])[1] for _ in range(2)]
        rows = torch.tensor([0, 1, 1], device=ids.device)
        once, kept[0] = own.step(picked(joined(kept, [1, 1]), rows, 2), torch.stack([ids[-1:], other[-1:], ids[-1:]]))
        again, _ = own.step(kept[1], ids[None, -1:])
        found, changed = torch.cat([once, again]), own.states(other[None])[0]
        wanted = torch.stack([states[-1], changed[-1], states[-1], states[-1]])[:, None]
        own.keeps = found.shape == wanted.shape and _first_wrong(found[:, 0], wanted[:, 0], together=1) is None
    except FAILS as error:
        raise_interrupt(error)
        own.keeps = False
    return None


class _Largest(TorchDispatchMode):
    """The most numbers that any one tensor made meanwhile has, but for views of weights."""

    def __init__(self, own: OwnPass):
        super().__init__()
        self.numbers = 0
        self._weights = {_place(weight) for weight in own.body.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and _place(tensor) not in self._weights:
                self.numbers = max(self.numbers, tensor.numel())
        return out


def _place(tensor: Tensor) -> int:
    """The address of what a tensor is a view of; 0 of packed ones, which have none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _first_wrong(
    ours: Tensor, own: Tensor, together: int = _TOGETHER, strictness: float = 1.0
) -> tuple[int, float] | None:
    """Where `[n, D]` states begin to differ by more than precision explains, and by how much the worst do: several
    neighbours, since a single one of a coarse pass may."""
    if ours.shape != own.shape:
        return 0, float("inf")
    off = ops.residuals(ours[:, None].float(), own.float(), backend="own")[:, 0].nan_to_num(nan=torch.inf)
    off = torch.where(own.isfinite().all(-1), off, 0.0)
    if not len(off):
        return None
    limit = OFF.get(own.dtype, OFF[torch.float32]) / strictness
    for start in range(max(1, len(off) - together + 1)):
        if not off[start : start + together].median() < limit:
            return start + int((off[start:] >= limit).int().argmax()), float(off.max())
    return None


def _where(decoder: Decoder, ids: Tensor, position: int) -> str:
    """At which block and position that begins."""
    try:
        ours = _outputs(decoder.body, decoder, ids, twin=True)
        own = _outputs(body_of(decoder.model), decoder, ids, twin=False)
    except (InputError, *FAILS):  # blocks that cannot be watched
        ours = own = []
    for block, (one, other) in enumerate(zip(ours, own, strict=False)):
        if wrong := _first_wrong(one, other):
            return f", from block {block}, position {wrong[0]} on"
    return f", from position {position} on"


def _outputs(body: nn.Module, decoder: Decoder, ids: Tensor, twin: bool) -> list[Tensor]:
    found: list[Tensor] = []
    count = decoder.blocks if twin else decoder.layer.blocks
    handles = [
        block.register_forward_hook(lambda _m, _a, out: found.append((out[0] if isinstance(out, tuple) else out)[0]))
        for block in (find_blocks(body, count)[1] if count else ())
    ]
    try:
        if twin:
            decoder.run(
                decoder.embed(ids)[None], torch.arange(len(ids), device=ids.device)[None], PrefixCall(causal=True)
            )
        else:
            body(input_ids=ids[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
