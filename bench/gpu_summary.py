"""What `gpu.sh` measured, as one JSON file and one short table. Needs nothing but Python.

python bench/gpu_summary.py FOLDER    reads rows.jsonl and stages.txt there, writes results.json and results.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = {  # what is worth a line: the first of these that a row has
    "milliseconds_per_step": "ms/step",
    "milliseconds_per_token": "ms/token",
    "milliseconds": "ms",
    "ratio_to_bare_forward": "× bare forward",
}
BESIDE = {
    "times_faster_than_eager": "× eager",
    "times_faster_than_plain": "× plain",
    "share_of_copy": "of a copy",
    "share_of_arithmetic": "of the arithmetic",
    "tokens_per_second": "tokens/s",
    "exact_match": "exact",
}


def line(row: dict) -> str:
    main = next(((key, unit) for key, unit in COLUMNS.items() if key in row), None)
    figure = f"{row[main[0]]} {main[1]}" if main else ""
    beside = ", ".join(f"{row[key]} {unit}" for key, unit in BESIDE.items() if key in row)
    return f"| {row['bench']} | {figure} | {beside} |"


def main(folder: Path) -> int:
    rows = [json.loads(text) for text in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    stages = (folder / "stages.txt").read_text(encoding="utf-8").splitlines()
    devices, settings = (sorted({row[of] for row in rows if of in row}) for of in ("device", "settings"))
    whole = {"devices": devices, "settings": settings, "stages": stages, "rows": rows}
    (folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    table = ["| bench | measured | beside |", "|---|---|---|", *map(line, rows)]
    text = "\n".join(
        [f"# {'; '.join(devices) or 'nothing measured'}", "", *(f"- {s}" for s in settings + stages), "", *table, ""]
    )
    (folder / "results.md").write_text(text, encoding="utf-8")
    print(text)
    if not rows:
        print(f"{folder}: no bench left a result, expected some: see the logs there", file=sys.stderr)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
