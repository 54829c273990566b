"""Where states are taken: one place in a model, by whatever name it was asked for."""

from __future__ import annotations

from ..types import InputError


class Layer:
    """Where states are taken: resolves a Hugging Face index, `block:k`, `final_norm` or `embeddings` to one place.

    depth: how many blocks run; normed: whether the final norm follows. `hidden_states[i]` is `embeddings` at 0, the
    output of block i−1 below L, and `final_norm` at L (Hugging Face applies the norm there); the raw output of the
    last block, `block:L-1`, is in none of Hugging Face's entries. tied: it is so; a few models (config
    `tie_last_hidden_states`) give that raw output at L, and the normed one nowhere but as `last_hidden_state`.
    """

    def __init__(self, name: int | str, blocks: int, tied: bool = True):
        self.blocks, self.tied = blocks, tied
        text = str(name).strip()
        allowed = (
            f"expected an index from {-blocks - 1} to {blocks}, block:0 … block:{blocks - 1}, final_norm or "
            "embeddings: name the layer the states were captured at"
        )
        try:
            if text.lstrip("+-").isdecimal():
                index = int(text)
                index += blocks + 1 if index < 0 else 0
                if not 0 <= index <= blocks:
                    raise ValueError
                self.depth, self.normed = index, index == blocks and tied
            elif text.startswith("block:"):
                self.depth, self.normed = int(text[6:]) + 1, False
                if not 1 <= self.depth <= blocks:
                    raise ValueError
            else:
                self.depth, self.normed = {"final_norm": (blocks, True), "embeddings": (0, False)}[text]
        except (ValueError, KeyError):
            raise InputError(f"layer '{name}' is not in this model of {blocks} blocks: {allowed}") from None

    @property
    def name(self) -> str:
        """The one canonical name, as written in files: equal names, equal states."""
        return "final_norm" if self.normed else f"block:{self.depth - 1}" if self.depth else "embeddings"

    @property
    def near_head(self) -> bool:
        """The next-token distribution follows from the state itself, without another forward pass."""
        return self.depth == self.blocks

    def __repr__(self) -> str:
        return f"Layer({self.name})"
