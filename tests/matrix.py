"""The table of families in docs/families.md: made by `python -m tests.matrix --write`, held to in tests/test_zoo.py.

Each row is a tiny random model of a family, at its last layer and after its first block: which path it runs by, and how
many tokens of a few texts, some longer than its window, came out right, certified, and certified though wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

TABLE = Path(__file__).parents[1] / "docs" / "families.md"
LENGTHS, LAYERS = (40, 1, 23), (-1, 1)
_HEAD = ("family", "path", "exact", "certified", "tokens", "path, block:0", "exact", "certified", "tokens")


@dataclass(frozen=True)
class Row:
    """path: fast | own | refused; of how many tokens; forward: forward tokens a token; wrong: certified, yet wrong."""

    path: str
    tokens: int = 0
    right: int = 0
    certified: int = 0
    wrong: int = 0
    forward: float = 0.0

    def cells(self) -> tuple[str, str, str, str]:
        if self.path == "refused":
            return self.path, "", "", ""
        return self.path, *(_of(n, self.tokens) for n in (self.right, self.certified)), f"{self.forward:.2f}"


def _of(count: int, whole: int) -> str:
    return "all" if count == whole else f"{count} of {whole}"


def measured(family: str, layer: int, lengths: Sequence[int] = LENGTHS) -> Row:
    """One row's half, of texts of a BOS and so many tokens. Refusals are part of it; all else that fails is raised."""
    from invert_fast import InputError, Inverter, Status

    from . import zoo

    try:
        inverter = Inverter(zoo.build(family), layer=layer)
    except InputError:
        return Row("refused")
    generator = torch.Generator().manual_seed(1)
    truth = [[1, *torch.randint(3, zoo.VOCAB, (n,), generator=generator).tolist()] for n in lengths]
    found = inverter.invert(inverter.capture(truth))
    same = np.concatenate([r.token_ids == np.array(ids) for r, ids in zip(found, truth, strict=True)])
    certified = np.concatenate([r.status == Status.CERTIFIED for r in found])
    return Row(
        "fast" if inverter.decoder.own is None else "own",
        len(same),
        int(same.sum()),
        int(certified.sum()),
        int((certified & ~same).sum()),
        sum(r.cost.forward_tokens for r in found) / len(same),
    )


def written() -> dict[str, tuple[str, ...]]:
    """The rows of the table as it stands: a family's cells."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells if len(row) == len(_HEAD) and row[0] != _HEAD[0] and "-" not in row[1]}


def _table(rows: dict[str, tuple[str, ...]]) -> str:
    lines = [_HEAD, ("---",) * len(_HEAD), *((family, *cells) for family, cells in sorted(rows.items()))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    from . import zoo
    from .small_fits import shrink

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help=f"put these rows into the table of {TABLE.name}")
    args = parser.parse_args()
    os.environ |= {"INVERT_FAST_SHARPEN": "off"}
    logging.getLogger("invert_fast").setLevel(logging.ERROR)
    rows = {}
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVERT_FAST_CACHE", cache)
        shrink(patch)
        for family in args.families or zoo.FAMILIES:
            try:
                rows[family] = tuple(cell for layer in LAYERS for cell in measured(family, layer).cells())
            except Exception as error:  # of one family: the others go on
                print(f"{family}: {type(error).__name__}: {error}", flush=True)
                continue
            print(family, *rows[family], flush=True)
    if args.write:
        rows = {family: cells for family, cells in written().items() if family in zoo.FAMILIES} | rows
        before = TABLE.read_text(encoding="utf-8")
        start, end = before.index("| family"), before.rindex("|\n") + 2
        TABLE.write_text(f"{before[:start]}{_table(rows)}\n{before[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
