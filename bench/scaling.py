"""How leak and cost go with length of texts, size of the model and number of texts: audits, and their plots.

    python bench/scaling.py [--model ./gemma-3-270m ./qwen2.5-coder-1.5b] --folder build/scaling --output docs

One audit of the last layer a model and length, and one a number of texts: stored in fp32 and bf16, undefended, under
Gaussian noise and under top-k. `--folder` keeps them: a run that was stopped goes on. Prints all figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from workloads import MODELS, SHARED

from invert_fast import Inverter
from invert_fast.audit import Settings, audit
from invert_fast.cli.report import table
from invert_fast.figures.svg import SERIES, Axis, Panel, around, sheet

LENGTHS, NUMBERS = (10, 32, 128, 512, 1024), (1, 4, 16, 64, 256)
TOKENS, LENGTH = 2048, 32  # of an audit of one length, at least one text; of texts where their number changes
DEFENCES = ("gaussian:0.5", "topk:32")
_LEAST_TEXTS = 2
_LARGE = 1_000_000_000  # parameters of a model whose passes take too long for more than one length


def texts_of(inverter: Inverter, count: int, length: int) -> list[str]:
    """So many texts of at least so many tokens: documents of C4, run together where they are too short."""
    lines = (SHARED / "text" / "c4_eval.jsonl").read_text(encoding="utf-8").splitlines()
    found, text = [], ""
    while len(found) < count:
        for line in lines:
            text = f"{text}\n{json.loads(line)['text']}" if text else json.loads(line)["text"]
            if len(text) > 2 * length and len(inverter.encode(text, special=True)) >= length:
                found, text = [*found, text], ""
                if len(found) == count:
                    break
    return found


def audits(models: dict[str, str], folder: Path) -> Iterator[dict]:
    """A row a cell of each audit, with its model, length and number of texts."""
    for name, place in models.items():
        inverter = Inverter.from_pretrained(place, dtype=_own_precision(Path(place)))
        size = sum(p.numel() for p in inverter.decoder.model.parameters())
        shapes = [(max(_LEAST_TEXTS, TOKENS // length), length, "length") for length in LENGTHS]
        if name == "bundled":
            shapes += [(count, LENGTH, "number") for count in NUMBERS]
        for count, length, along in shapes:
            if length > inverter.decoder.max_length or (size > _LARGE and length != LENGTH):
                continue
            settings = Settings(("last",), ("float32", "bfloat16"), DEFENCES, max_tokens=length, measure=0)
            output = folder / f"{name}-{count}x{length}"
            done = output / "summary.json"
            if not done.is_file():
                begun = (output / "audit.json").is_file()
                audit(inverter, texts_of(inverter, count, length), output, settings, resume=begun)
            for cell in json.loads(done.read_text(encoding="utf-8"))["cells"]:
                yield {"model": name, "size": size, "length": length, "count": count, "along": along, **cell}


def _own_precision(folder: Path) -> str:
    """What the weights are kept in, which is what one of billions of parameters runs in."""
    config = folder / "config.json"
    kept = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return str(kept.get("dtype") or kept.get("torch_dtype") or "float32")


def plots(rows: list[dict]) -> dict[str, str]:
    """SVG by file name: what comes back and what it costs, by length, by number of texts and by size of the model."""
    rows = [row for row in rows if row["precision"] == "float32"]
    by_length = [row for row in rows if row["along"] == "length"]
    models = list(dict.fromkeys(row["model"] for row in by_length if row["length"] != LENGTH))  # one point is no line
    by_number = [row for row in rows if row["along"] == "number"]
    by_size = [{**row, "size": row["size"] / 1e6} for row in by_length if row["length"] == LENGTH]
    length, number = Axis("tokens a text", 10, 1024, True), Axis("texts of 32 tokens", 1, 1000, True)
    size = around((row["size"] for row in by_size), "million parameters", log=True)
    found = {}
    for words, chosen, x, at, lines in (
        ("length", by_length, length, "length", models),
        ("number of texts", by_number, number, "count", ["bundled"]),
        ("size of the model", by_size, size, "size", None),
    ):
        right = Panel(f"What comes back, by {words}", x, Axis("tokens right, %", 0, 100))
        cost = Panel(f"What it costs, by {words}", x, around([0.5, *_costs(rows)], "time / bare pass", log=True))
        for model, colour in zip(lines or [None], SERIES, strict=False):
            of = [row for row in chosen if model in (None, row["model"])]
            for defence, dash in (("none", ""), *zip(DEFENCES, ("6 3", "2 3"), strict=True)):
                some = sorted((row for row in of if row["defence"] == defence), key=lambda row: row[at])
                label = ", ".join(name for name in (model, defence) if name and name != "none") or "undefended"
                shares = [(row[at], 100 * row["token_accuracy"]["value"]) for row in some]
                right.line(shares, colour, label, dash=dash)
                if defence == "none":
                    cost.line([(row[at], row["times_bare_pass"]) for row in some], colour, label)
        found[f"scaling_{at}.svg"] = sheet(f"Leak and cost by {words}", [right, cost])
    return found


def _costs(rows: list[dict]) -> list[float]:
    return [row["times_bare_pass"] for row in rows if row["defence"] == "none"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="folders of further models")
    parser.add_argument("--folder", type=Path, default=Path("build/scaling"))
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the plots")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    models = {Path(name).name: name for name in MODELS}
    models |= {place.name: str(place) for place in args.model}
    rows = [*audits(models, args.folder)]
    for name, drawn in plots(rows).items():
        (args.output / name).write_text(drawn, encoding="utf-8")
    columns = [
        "model",
        "parameters",
        "texts × tokens",
        "stored",
        "defence",
        "right",
        "certified",
        "fwd/token",
        "time/bare",
    ]
    cells = [
        [
            row["model"],
            f"{row['size'] / 1e6:.2f} M",
            f"{row['count']} × {row['length']}",
            row["precision"],
            row["defence"],
            f"{100 * row['token_accuracy']['value']:.1f} %",
            f"{100 * row['certified']['value']:.1f} %",
            f"{row['forward_tokens_per_token']['value']:.2f}",
            f"{row['times_bare_pass']:.2f}",
        ]
        for row in rows
    ]
    print(table(columns, cells))
    wrong = sum(row["certified_wrong"] for row in rows)
    print(f"{wrong} certified and wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
