"""Texts, chats and ids → the ids that the model's own use runs, and that use in words: the Hugging Face call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..model.decoder import Decoder
from ..model.twin import body_of, find_blocks
from ..types import InputError

CHAT = (
    'ids = tokenizer.apply_chat_template(messages, add_generation_prompt=messages[-1]["role"] != "assistant", '
    'tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]'
)


def is_chat(item: Any) -> bool:
    """A list of messages, `{"role": …, "content": …}` each."""
    return isinstance(item, Sequence) and len(item) > 0 and all(isinstance(m, Mapping) and "role" in m for m in item)


def encode(decoder: Decoder, item: Any, special: bool) -> list[int]:
    """Ids of a text, of a chat, or ids as they are.

    special: a text gets what the tokenizer adds by itself; a chat has what its template writes, always. Raises
    InputError for anything else, and where there is no tokenizer or no template.
    """
    if isinstance(item, str):
        return list(decoder.encode(item, special))
    if isinstance(item, Mapping):
        raise InputError(
            f"a text is a mapping with {', '.join(map(str, list(item)[:4]))}, expected a string, ids, or a list of "
            "messages with role and content: give item['messages']"
        )
    if is_chat(item):
        return _chat_ids(decoder, item)
    try:
        return [int(i) for i in item]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a text is a {type(item).__name__} ({' '.join(str(error).split())[:80]}), expected a string, ids, or "
            "a list of messages with role and content: capture takes a list of these"
        ) from error


def _chat_ids(decoder: Decoder, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    tokenizer = decoder.tokenizer
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"this model has no {'tokenizer' if tokenizer is None else 'chat template'}, expected one for messages: "
            "give their text as the application writes it, or a model that was made for chats"
        )
    try:
        found = tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            add_generation_prompt=messages[-1]["role"] != "assistant",
            tokenize=True,
            return_dict=True,
        )
    except Exception as error:  # a template is a program of the model's makers, and refuses what it will
        raise InputError(
            f"this model's chat template refuses the messages ({' '.join(str(error).split())[:120]}), expected roles "
            "and contents that it knows: see the model's card"
        ) from error
    return [int(i) for i in found["input_ids"]]


def special_words(decoder: Decoder, special: bool) -> str:
    """What the tokenizer adds to a text, said for people."""
    plain, whole = decoder.encode("a"), decoder.encode("a", special=True)
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    added = [*whole[:at], *whole[at + len(plain) :]]
    if not added:
        return "no special tokens: this tokenizer adds none"
    names = " and ".join(f"{decoder.decode([i])} ({i})" for i in added)
    return f"with {names}, as the tokenizer adds by itself" if special else f"without {names} (--no-special)"


def hugging_face_call(decoder: Decoder, special: bool, chat: bool, max_tokens: int | None = None) -> list[str]:
    """Lines that give the same states, `[T, D]`, of a `text` (or `messages`) with a `model` and its `tokenizer`."""
    text = f'ids = tokenizer(text, add_special_tokens={special}, return_tensors="pt")["input_ids"]'
    lines = [CHAT if chat else text, *([f"ids = ids[:, :{max_tokens}]"] if max_tokens else [])]
    layer = decoder.layer
    if layer.near_head and not layer.normed and layer.tied:
        blocks = find_blocks(decoder.model, layer.blocks)[1]
        name = next(name for name, module in decoder.model.named_modules() if module is blocks)
        keep = "kept.append(out[0] if isinstance(out, tuple) else out)"
        return [
            *lines,
            "kept = []",
            f"hook = model.{name}[-1].register_forward_hook(lambda block, args, out: {keep})",
            "model(ids); hook.remove(); states = kept[0][0]",
        ]
    if layer.normed and not layer.tied:
        name = next(name for name, module in decoder.model.named_modules() if module is body_of(decoder.model))
        return [*lines, f"states = model.{name}(ids).last_hidden_state[0]"]
    return [*lines, f"states = model(ids, output_hidden_states=True).hidden_states[{layer.depth}][0]"]
