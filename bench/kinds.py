"""What kinds of text come back whole from a real model's last layer, and at what cost.

    python bench/kinds.py --model ./gemma-3-270m [--layer -1] [--texts 16] [--tokens 64] [--json FILE]

Prose, code, other scripts, emoji, chats, random tokens; without what the tokenizer puts before a text; one long text,
and many. All from a lens as first fitted: learning from use is off. Prints a table; the exit status is 1 where a
certified token is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm
from workloads import SHARED, bare_forward, random_rows

from invert_fast import InputError, Inverter
from invert_fast.cli.report import table

OTHERS = Path(__file__).with_name("scripts.tsv")  # other scripts: a name and a text a line
LONG, WIDE = (1, 2048), (64, 128)


def kinds(inverter: Inverter, texts: int, tokens: int) -> Iterator[tuple[str, list[list[int]]]]:
    """Rows of ids by kind, all of a kind as long."""
    c4, wiki = _documents("c4_eval.jsonl"), _documents("wikipedia_eval.jsonl")
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    asked = _documents("instructions.jsonl")
    yield "web text (C4)", _cut(inverter, c4, texts, tokens)
    yield "the same, without BOS", _cut(inverter, c4, texts, tokens, special=False)
    yield "encyclopedia (Wikipedia)", _cut(inverter, wiki, texts, tokens)
    yield "code (Python)", _cut(inverter, code, texts, tokens)
    for line in OTHERS.read_text(encoding="utf-8").splitlines():
        name, text = line.split("\t")
        yield name, _cut(inverter, [text], 1, tokens)
    chats = [[{"role": "user", "content": f"{one} {two}"}] for one, two in zip(asked[::2], asked[1::2], strict=False)]
    try:
        yield "chats, by the template", _cut(inverter, chats, texts, tokens)
    except InputError:
        print("no chat template: left out", file=sys.stderr)
    yield "random tokens", random_rows(inverter, texts, tokens)
    yield "one long text", _joined(inverter, c4, *LONG)
    yield "many texts", _joined(inverter, c4, *WIDE)


def _documents(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (SHARED / "text" / name).read_text(encoding="utf-8").splitlines()]


def _cut(inverter: Inverter, documents: list, count: int, tokens: int, special: bool = True) -> list[list[int]]:
    """The first documents that are long enough; of shorter ones their own length, where there is one alone."""
    rows = [inverter.encode(document, tokens, special) for document in documents]
    if len(rows) == 1:
        return rows
    least = tokens if sum(len(row) == tokens for row in rows) >= count else tokens // 2
    return [row[:least] for row in rows if len(row) >= least][:count]


def _joined(inverter: Inverter, documents: list[str], count: int, tokens: int) -> list[list[int]]:
    """Documents run together, from another one on each time."""
    tokens, rows = min(tokens, inverter.decoder.max_length), []
    while len(rows) < count:
        at, row = len(rows) * len(documents) // count, inverter.encode("", special=True)
        while len(row) < tokens:
            row, at = row + inverter.encode(f"{documents[at % len(documents)]}\n"), at + 1
        rows.append(row[:tokens])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layer", default="-1")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["INVERT_FAST_SHARPEN"] = "off"
    inverter = Inverter.from_pretrained(args.model, args.layer, dtype=args.dtype)
    cells, kept, wrong = [], [], 0
    inverter.invert(inverter.capture(["A first text, so that the lens is there."]))
    for kind, rows in tqdm([*kinds(inverter, args.texts, args.tokens)], desc="kinds", disable=None):
        states = list(inverter.capture_ids(rows))
        start = time.perf_counter()
        found = inverter.invert(states)
        seconds, bare = time.perf_counter() - start, bare_forward(inverter, rows, 1)
        right = [a == b for r, row in zip(found, rows, strict=True) for a, b in zip(r.token_ids, row, strict=True)]
        sure = [bool(s == 0) for r in found for s in r.status]
        wrong += sum(s and not r for r, s in zip(right, sure, strict=True))
        spent = [r.cost.forward_tokens for r in found]
        one = {
            "kind": kind,
            "texts": len(rows),
            "tokens": len(rows[0]),
            "right": sum(right) / len(right),
            "certified": sum(sure) / len(sure),
            "forward_tokens_per_token": sum(spent) / len(right),
            "median_text": statistics.median(spent) / len(rows[0]),
            "times_bare_pass": seconds / bare,
        }
        kept.append(one)
        cells.append(
            [
                kind,
                f"{one['texts']} × {one['tokens']}",
                f"{100 * one['right']:.1f} %",
                f"{100 * one['certified']:.1f} %",
                f"{one['forward_tokens_per_token']:.1f}",
                f"{one['median_text']:.1f}",
                f"{one['times_bare_pass']:.1f}",
            ]
        )
        if args.json:
            args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(["kind", "texts × tokens", "right", "certified", "fwd/token", "median text", "time/bare"], cells))
    print(f"{wrong} certified and wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
