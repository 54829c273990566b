"""TransformerLens: an `ActivationCache` and the name of a hook → states, and how they are to be read.

`HookedTransformer.from_pretrained` (TransformerLens 3) and `enable_compatibility_mode` (4) rewrite the weights. What
that does to the residual stream, and what becomes of it here:

- `center_writing_weights`: every row loses its mean over the width. A LayerNorm never sees that mean, so nothing is
lost
  but it: the rows are read as `centered`, as `--centered` does.
- `fold_ln`: gains and biases of the norms go into the next layer. The residual stream is the same; what the final norm
  gives is no longer `final_norm` but only normalised, which is the last block's output up to a length: `--scale unit`.
- `fold_value_biases`, `center_unembed`, `refactor_factored_attn_matrices`: leave the residual stream as it is.

Parts of the residual stream (attention and MLP outputs, heads, neurons, `resid_mid`) are refused: they are not a
layer's states.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ..model.reading import AS_CAPTURED, UNIT, Reading
from ..types import InputError
from .needs import TRANSFORMER_LENS
from .tapped import Tapped

_BLOCK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_NORMALIZED, _FINAL = "ln_final.hook_normalized", "ln_final.hook_out"
_LEVEL = 1e-2  # means of rows that were centred: rounding; of others, shares of their length
_USE = "blocks.K.hook_resid_post, blocks.K.hook_resid_pre or ln_final.hook_normalized"


def states_of(cache: Any, hook: str | tuple[str, int], attention_mask: Any = None) -> Tapped:
    """The states of one hook of a cache, with their layer and `Reading`.

    cache: an `ActivationCache`; hook: a name, or TransformerLens's short form `("resid_post", 3)`; attention_mask:
    `[B, T]` of a padded batch. Raises InputError for a hook that is no whole residual stream, or that the cache does
    not hold.
    """
    TRANSFORMER_LENS.check()
    name = hook if isinstance(hook, str) else f"blocks.{hook[1]}.hook_{hook[0]}"
    config = cache.model.cfg
    blocks, kind = int(config.n_layers), str(config.normalization_type or "")
    layer = _layer(name, blocks)
    try:
        rows: Tensor = cache[name]
    except KeyError:
        raise InputError(
            f"this cache has no {name}, expected it: leave names_filter out of run_with_cache, or name it there"
        ) from None
    normed = name == _NORMALIZED or (name == _FINAL and _is_normalised(rows))
    if name == _FINAL and not normed:
        return Tapped(rows, "final_norm", AS_CAPTURED, attention_mask)
    centred = kind.startswith("LN") and (normed or _is_centred(rows))
    return Tapped(rows, layer, Reading(centered=centred, scale=UNIT if normed else 1.0), attention_mask)


def _layer(name: str, blocks: int) -> str:
    """Where in the model a hook's rows are the whole residual stream."""
    if name in (_NORMALIZED, _FINAL):
        return f"block:{blocks - 1}"  # but for its length, and with LayerNorm its mean
    if found := _BLOCK.fullmatch(name):
        depth = int(found[1]) + (found[2] == "post")
        return f"block:{depth - 1}" if depth else "embeddings"
    if name in ("hook_embed", "hook_pos_embed"):
        why = "is one of the parts that the first block's input is made of: take blocks.0.hook_resid_pre"
    elif name.endswith("hook_resid_mid"):
        why = "is the residual stream in the middle of a block: take the block's hook_resid_post"
    elif name.startswith("blocks."):
        why = f"is a part of what a block adds, not the residual stream: take {_USE}"
    else:
        why = f"is not the residual stream: take {_USE}"
    raise InputError(f"{name} {why}")


def _is_centred(rows: Tensor) -> bool:
    """Rows whose mean over the width was taken out of the weights; their other numbers are no smaller for it."""
    rows = rows.detach().double()
    usual = rows.square().mean(-1).sqrt().median()
    return bool(rows.mean(-1).abs().max() <= _LEVEL * usual)


def _is_normalised(rows: Tensor) -> bool:
    """Rows of one length, √D: what a final norm gives whose gain was folded away."""
    size = rows.detach().double().square().mean(-1)
    return bool(((size - 1).abs() <= _LEVEL).all())
