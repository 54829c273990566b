"""Short prompts to train and measure on: beginnings of sentences, and what the target itself writes."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..storage.json_text import parse
from ..types import InputError
from .target import Target

_SENTENCE = re.compile(r"(?<=[.!?])[\"”’']?\s+|\n\s*\n")
_LEAST = 12  # characters; shorter pieces are headings, initials and page numbers
_AT_ONCE = 20_000
_SPARE = 1.6  # sentences read for each prompt wanted: some are too short, do not come back as written, or repeat


@dataclass(frozen=True)
class PromptSet:
    """Prompts as token ids of the target, disjoint as sequences: train, held (early stopping), test."""

    train: list[list[int]]
    held: list[list[int]]
    test: list[list[int]]


def read_sentences(path: str | Path) -> list[str]:
    """Sentences of a `.txt` or `.jsonl` (`{"text": …}` a line) file, either also as `.xz`, in order.

    Raises InputError for a file that is absent or not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist, expected a .txt or .jsonl file of training text (also as .xz)")
    try:
        raw = path.read_bytes()
        text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8")
    except (UnicodeDecodeError, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read ({error}), expected UTF-8 text, or the same as .xz") from error
    if ".jsonl" not in path.suffixes:
        return _sentences(text)
    found: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}, line {number}: expected an object {{"text": …}} ({error})') from error
        if not isinstance(value, str):
            raise InputError(f"{path}, line {number}: `text` is {type(value).__name__}, expected a string")
        found += _sentences(value)
    return found


def _sentences(text: str) -> list[str]:
    pieces = (" ".join(piece.split()) for piece in _SENTENCE.split(text))
    return [piece.lstrip("\"'“‘_*-(") for piece in pieces if len(piece) >= _LEAST]


def cut(target: Target, texts: Sequence[str], lengths: tuple[int, int], seed: int) -> list[list[int]]:
    """The first L tokens of each text, L drawn from lengths (inclusive); texts too short are left out, and beginnings
    whose text does not encode to the same tokens again, since a prompt is a text to everybody else."""
    low, high = lengths
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(low, high + 1, (len(texts),), generator=generator).tolist()
    kept: list[list[int]] = []
    for start in range(0, len(texts), _AT_ONCE):
        part = target.encode([text[: 24 * high] for text in texts[start : start + _AT_ONCE]])
        cuts = [ids[:n] for ids, n in zip(part, drawn[start:], strict=False) if len(ids) >= n]
        again = target.encode(target.decode(cuts)) if cuts else []
        kept += [ids for ids, same in zip(cuts, again, strict=True) if ids == same]
    return kept


def gather(
    target: Target,
    sources: Sequence[Sequence[str]],
    count: int,
    lengths: tuple[int, int],
    held: int,
    test: int,
    self_sampled: float = 0.0,
    seed: int = 0,
) -> PromptSet:
    """`count` training prompts, in equal parts from each source as far as it reaches, and disjoint held-out ones.

    sources: sentences of each; self_sampled: share of all prompts that the target writes on from the first token of
    the others, at temperature 1. Deterministic from the seed.
    """
    if not 1 <= lengths[0] <= lengths[1]:
        raise InputError(f"prompts of {lengths[0]} to {lengths[1]} tokens, expected 1 ≤ shortest ≤ longest")
    if not 0 <= self_sampled < 1:
        raise InputError(f"a share of {self_sampled} self-sampled prompts, expected 0 ≤ share < 1")
    total = count + held + test
    natural = _natural(target, sources, round(total * (1 - self_sampled)), lengths, seed)
    written = _written(target, natural, total - len(natural) if self_sampled else 0, lengths, seed + 1)
    both = list(dict.fromkeys(map(tuple, natural + written)))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(both), generator=generator).tolist()
    mixed = [list(both[i]) for i in order]
    if len(mixed) < held + test + 1:
        raise InputError(
            f"{len(mixed)} different prompts in the training text, expected more than {held + test} (held out and "
            "test): give more text, or hold out fewer"
        )
    return PromptSet(mixed[held + test :], mixed[:held], mixed[held : held + test])


def _natural(target, sources, count, lengths, seed) -> list[list[int]]:
    """Distinct beginnings, the smallest source first, so that larger ones make up for what it lacks."""
    found: dict[tuple[int, ...], None] = {}
    ordered = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for place, number in enumerate(ordered):
        sentences, wanted = sources[number], (count - len(found)) // (len(sources) - place)
        generator = torch.Generator().manual_seed(seed + 101 * number)
        order = torch.randperm(len(sentences), generator=generator).tolist()
        before, at = len(found), 0
        while len(found) - before < wanted and at < len(order):
            step = int(_SPARE * (wanted - (len(found) - before))) + 64
            chosen = [sentences[i] for i in order[at : at + step]]
            for ids in cut(target, chosen, lengths, seed + at):
                if len(found) - before < wanted:
                    found[tuple(ids)] = None
            at += step
    return [list(ids) for ids in found]


def _written(target, natural, count, lengths, seed) -> list[list[int]]:
    """Beginnings that the target writes itself, after first tokens of the natural ones."""
    if not count:
        return []
    if not natural:
        raise InputError("no prompts in the training text to take first tokens from: give text of longer sentences")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(natural), (int(_SPARE * count),), generator=generator).tolist()
    starts = [natural[i][:1] for i in first]
    rest = target.write(starts, lengths[1] - 1, 1.0, seed)
    drawn = torch.randint(lengths[0], lengths[1] + 1, (len(starts),), generator=generator).tolist()
    cuts = [(start + more)[:n] for start, more, n in zip(starts, rest, drawn, strict=True)]
    again = target.encode(target.decode(cuts))
    kept = dict.fromkeys(tuple(ids) for ids, same in zip(cuts, again, strict=True) if ids == same)
    return [list(ids) for ids in kept][:count]
