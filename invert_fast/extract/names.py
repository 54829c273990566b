"""Token ids from the names an API gives its tokens. A name shared by several ids is never guessed."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

from tqdm import tqdm

from ..types import InputError
from .interface import UNKNOWN


class TokenNames:
    """Bytes of every token, and back. Ids past the tokenizer have no name."""

    def __init__(self, names: list[bytes | None], special: Collection[int] = ()):
        self._names, self._special = names, frozenset(special)
        self._ids: dict[bytes, list[int]] = {}
        for token, name in enumerate(names):
            if name is not None:
                self._ids.setdefault(name, []).append(token)

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int) -> TokenNames:
        """From a Hugging Face tokenizer: byte-level and byte-fallback tokens keep their bytes, others their text."""
        if tokenizer is None:
            raise InputError("this API names tokens by text, and no tokenizer was given: give the model's own")
        count = min(vocab_size, len(tokenizer))
        pieces = tokenizer.convert_ids_to_tokens(list(range(count)))
        byte_level, special = _byte_level(tokenizer), set(tokenizer.all_special_ids)
        names: list[bytes | None] = [None] * vocab_size
        for token, piece in enumerate(tqdm(pieces, desc="token names", delay=2, leave=False)):
            if piece is None:
                continue
            if token in special:
                names[token] = piece.encode()
            elif byte_level and all(c in _FROM_UNICODE for c in piece):
                names[token] = bytes(_FROM_UNICODE[c] for c in piece)
            elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                names[token] = bytes([int(piece[3:5], 16)])
            else:
                names[token] = piece.replace("▁", " ").encode()
        return cls(names, [i for i in special if i < vocab_size])

    @property
    def size(self) -> int:
        """How many ids there are, with or without a name."""
        return len(self._names)

    def text_of(self, token: int) -> str:
        """As a server writes it: nothing for special tokens, U+FFFD for what is no UTF-8."""
        name = self._names[token]
        return "" if name is None or token in self._special else name.decode(errors="replace")

    def find(self, name: bytes | str, among: Collection[int] = ()) -> int:
        """The id of a name. Where the name does not tell it, the one untellable token in `among` (what was biased: a
        call biases at most one of them), else UNKNOWN."""
        broken = isinstance(name, str) and "\ufffd" in name  # what is left of bytes that are no UTF-8
        ids = [] if broken else self._ids.get(name.encode() if isinstance(name, str) else name, [])
        if len(ids) != 1:
            ids = [i for i in (ids or among) if i in among and i in self.untellable]
        return ids[0] if len(ids) == 1 else UNKNOWN

    @cached_property
    def untellable(self) -> frozenset[int]:
        """Tokens whose text does not tell them: none, the same as another's, or broken UTF-8. Special tokens are among
        them, since servers leave their text out."""
        shared = {i for ids in self._ids.values() if len(ids) > 1 for i in ids}
        return frozenset(shared | self._special | {i for i, name in enumerate(self._names) if not _is_text(name)})


def _is_text(name: bytes | None) -> bool:
    try:
        return bool(name) and "\ufffd" not in name.decode()
    except UnicodeDecodeError:
        return False


def _byte_level(tokenizer) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in repr(getattr(backend, "decoder", None))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the other 68 for U+0100 and what follows."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_FROM_UNICODE = _byte_alphabet()
