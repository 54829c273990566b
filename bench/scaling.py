"""How leak and cost go with length of texts, size of the model and number of texts: audits, and their plot.

    python bench/scaling.py [--gemma ./gemma-3-270m] --folder build/scaling --output docs/scaling.svg

One audit of the last layer a model and length, and one a number of texts: in fp32 and bf16, undefended, under Gaussian
noise and under top-k. `--folder` keeps them: a run that was stopped goes on. Prints the table of docs/audit.md.
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
from invert_fast.figures.svg import SERIES, Axis, Panel, sheet

LENGTHS, NUMBERS = (10, 32, 128, 512, 1024), (1, 4, 16, 64, 256)
TOKENS, LENGTH = 2048, 32  # of an audit of one length, at least one text; of texts where their number changes
DEFENCES = ("gaussian:0.5", "topk:32")
_LEAST_TEXTS = 2


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
        inverter = Inverter.from_pretrained(place)
        size = sum(p.numel() for p in inverter.decoder.model.parameters())
        shapes = [(max(_LEAST_TEXTS, TOKENS // length), length, "length") for length in LENGTHS]
        if name == "bundled":
            shapes += [(count, LENGTH, "number") for count in NUMBERS]
        for count, length, along in shapes:
            if length > inverter.decoder.max_length:
                continue
            settings = Settings(("last",), ("float32", "bfloat16"), DEFENCES, max_tokens=length, measure=0)
            output = folder / f"{name}-{count}x{length}"
            done = output / "summary.json"
            if not done.is_file():
                audit(inverter, texts_of(inverter, count, length), output, settings)
            for cell in json.loads(done.read_text(encoding="utf-8"))["cells"]:
                yield {"model": name, "size": size, "length": length, "count": count, "along": along, **cell}


def plot(rows: list[dict]) -> str:
    """Four panels: what comes back and what it costs, by length and by number."""
    models = list(dict.fromkeys(row["model"] for row in rows))

    def along(what: str, value: str, title: str, words: str, high: float, percent: bool) -> Panel:
        chosen = [r for r in rows if r["along"] == what and r["precision"] == "float32"]
        at = "length" if what == "length" else "count"
        x = Axis(
            "tokens a text" if what == "length" else "texts of 32 tokens", 1 if what == "number" else 10, 1024, True
        )
        panel = Panel(title, x, Axis(words, 0, high))
        for model, colour in zip(models, SERIES, strict=False):
            for defence, dash in (("none", ""), *zip(DEFENCES, ("6 3", "2 3"), strict=True)):
                points = [(r[at], r[value]) for r in chosen if (r["model"], r["defence"]) == (model, defence)]
                points = [(x, (y["value"] if isinstance(y, dict) else y) * (100 if percent else 1)) for x, y in points]
                if points and (percent or defence == "none"):
                    label = model if defence == "none" else f"{model}, {defence}"
                    panel.line(sorted(points), colour, label, dash=dash)
        return panel

    most = 1.1 * max(r["times_bare_pass"] for r in rows if r["defence"] == "none")
    return sheet(
        "How leak and cost go with length and number",
        [
            along("length", "token_accuracy", "What comes back, by length", "tokens right, %", 100, True),
            along("length", "times_bare_pass", "What it costs, by length", "time / bare pass", most, False),
            along("number", "token_accuracy", "What comes back, by number", "tokens right, %", 100, True),
            along("number", "times_bare_pass", "What it costs, by number", "time / bare pass", most, False),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma", type=Path, help="folder of Gemma-3-270M, to have it in as well")
    parser.add_argument("--folder", type=Path, default=Path("build/scaling"))
    parser.add_argument("--output", type=Path, default=Path("docs/scaling.svg"))
    args = parser.parse_args()
    models = {Path(name).name: name for name in MODELS}
    if args.gemma:
        models["Gemma-3-270M"] = str(args.gemma)
    rows = [*audits(models, args.folder)]
    args.output.write_text(plot(rows), encoding="utf-8")
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
            f"{row['size'] / 1e6:.2g} M",
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
