"""`explain`: capture a text, look at each of its positions, and let the engine say what it is called."""

from __future__ import annotations

from typing import Any

from ..inverter import Inverter
from ..lens.choose import choose_lens
from ..model.reading import AS_CAPTURED
from ..reports.pieces import added
from ..types import InputError, Spelling, States, Status, coarsest
from .explanation import Explanation, Position, Rival
from .looking import Looked, look
from .reason import reasons
from .told import telling

NEAR = 4
_BEFORE = 8  # tokens of context that a token's text is read in


def explain(
    inverter: Inverter,
    text: Any,
    *,
    max_tokens: int | None = None,
    special: bool = True,
    store_dtype: str = "float32",
    near: int = NEAR,
) -> Explanation:
    """Why each token of a text (or chat, or ids) comes back from its states, or does not.

    The text is captured as by `Inverter.capture`, with its `max_tokens`, `special` and `store_dtype`. near: how many
    other tokens are tried at each position, those of the nearest rows of the embedding and those that the lens holds
    likeliest. What the certificates cost is one pass and the rivals that the engine itself asks for, since it is told
    the text; all in all that is `near` and some three bare passes, and two products with the vocabulary, a token. No
    table of all positions and all tokens is held. Raises InputError for an inverter that reads states in another way
    than they are captured.
    """
    if inverter.decoder.reading != AS_CAPTURED:
        raise InputError("states are explained as they are captured, expected an inverter without a `reading`")
    if near < 1:
        raise InputError(f"near is {near}, expected 1 or more: how many other tokens are tried at each position")
    ids = inverter.encode(text, max_tokens, special)
    (states,) = inverter.capture([ids], store_dtype=store_dtype)
    return explain_states(inverter, ids, states, near)


def explain_states(inverter: Inverter, ids: list[int], states: States, near: int = NEAR) -> Explanation:
    """As `explain`, of states that are said to be of the tokens `ids`, as many as there are rows."""
    decoder, vocabulary = inverter.decoder, inverter.vocabulary
    stored, computed = coarsest([states])
    tolerances, hidden = inverter.calibrate(stored, computed), inverter.checked(0, states)
    lens = choose_lens(decoder, vocabulary, "auto", stored)
    (recovery,) = inverter.invert(states, telling(ids), tolerances=tolerances)
    found = recovery.token_ids.tolist()
    looked = look(decoder, vocabulary, tolerances, lens, ids, hidden, found, near) if ids else None
    shown = () if looked is None else _positions(inverter, ids, looked, recovery)
    return Explanation(shown, recovery, decoder.layer.name, stored, computed, lens.kind)


def _positions(inverter: Inverter, ids: list[int], looked: Looked, recovery: Any) -> tuple[Position, ...]:
    found, statuses = recovery.token_ids.tolist(), [Status(int(status)) for status in recovery.status]
    why = reasons(ids, found, statuses, looked.alone, looked.equals)
    tokenizer = inverter.decoder.tokenizer
    spell = None if tokenizer is None else Spelling(tokenizer)
    made = []
    for t, token in enumerate(ids):
        before = ids[max(0, t - _BEFORE) : t]

        def said(other: int, before: list[int] = before) -> str | None:
            return None if spell is None else added(before, [other], spell)

        pairs = zip(looked.rivals[t], looked.away[t], strict=True)
        made.append(
            Position(
                *(t, token, said(token), looked.draft[t], said(looked.draft[t]), looked.lens_rank[t]),
                prior_rank=looked.prior_rank[t - 1] if t else None,
                prior_probability=looked.chance[t - 1] if t else None,
                residual=looked.residual[t],
                tolerance=looked.tolerance[t],
                required=looked.required[t],
                bound=looked.bound[t],
                rivals=tuple(Rival(other, said(other), away) for other, away in pairs if other >= 0),
                found_id=found[t],
                found=said(found[t]),
                status=statuses[t],
                error_bound=float(recovery.error_bound[t]),
                reason=why[t],
            )
        )
    return tuple(made)
