"""Tables 1–5 of 2607.00852 on any model, with its figures beside ours, its ablations, and all modes in one table.

    python bench/paper_tables.py --quick
    python bench/paper_tables.py --model bundled --limit 100 --output build/paper/bundled

Writes OUTPUT.json after every finished row and OUTPUT.md at the end (and when stopped); started again with the same
options it goes on with the rows that are missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from paper import measure, render
from tqdm import tqdm

from invert_fast import Inverter
from invert_fast.cli.demo import sentences
from invert_fast.storage.finished import Finished
from invert_fast.storage.prompts import read_prompts
from invert_fast.types import InputError

SHARED = Path(os.environ.get("INVERT_FAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PARTS = ("tables", "modes", "ablations")
QUICK = measure.Plan(
    lanes=64,
    baseline_texts=1,
    one_lane_texts=1,
    ablation_texts=8,
    steps=(25, 50, 100, 200),
    presets=measure.Plan().presets,
)


def main(argv: Sequence[str] | None = None, plan: measure.Plan | None = None) -> int:
    """Run the command; 0 when all rows are there, 2 on bad input, 130 when stopped. plan: instead of the usual ones."""
    args = _parser().parse_args(argv)
    limit, tokens = args.limit or (8 if args.quick else 100), args.tokens or (2 if args.quick else 10)
    plan = plan or (QUICK if args.quick else measure.Plan())
    if args.alone:
        plan = replace(plan, baseline_texts=args.alone, one_lane_texts=args.alone)
    if args.searched:
        plan = replace(plan, searched_texts=args.searched)
    try:
        inverter = Inverter.from_pretrained(args.model, args.layer, args.device)
        texts = _texts(inverter, args.prompts, args.wikipedia, limit, tokens)
        setup = _setup(inverter, args, limit, tokens, {name: len(rows) for name, rows in texts.items()})
        store = Finished(args.output.with_name(args.output.name + ".json"), setup)
    except (InputError, OSError) as error:
        print(f"paper_tables: {error}", file=sys.stderr)
        return 2
    todo = measure.jobs(inverter, texts, plan, args.only)
    try:
        with tqdm(todo, file=sys.stderr, dynamic_ncols=True, unit="row") as bar:
            for job in bar:
                bar.set_description(job.key)
                if job.key not in store.rows:
                    store.add(job.key, job.run())
    except KeyboardInterrupt:
        print("paper_tables: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        shown = render.markdown({job.key: store.rows[job.key] for job in todo if job.key in store.rows}, setup)
        args.output.with_name(args.output.name + ".md").write_text(shown, encoding="utf-8")
    print(shown)
    return 0


def _texts(
    inverter: Inverter, prompts: Path | None, wikipedia: Path | None, limit: int, tokens: int
) -> dict[str, list[list[int]]]:
    """Token ids of the first `limit` prompts of each kind that have `tokens` tokens. Without files: the package's own
    sentences, which are then called c4 in the tables and named in the setup."""
    found: dict[str, list[list[int]]] = {}
    for name, path in (("c4", prompts), ("wikipedia", wikipedia)):
        if path is None and name == "wikipedia":
            continue
        lines = sentences() if path is None else read_prompts(path, None)
        rows = [row[:tokens] for row in map(inverter.encode, lines) if len(row) >= tokens][:limit]
        if not rows:
            raise InputError(
                f"{path or 'the bundled sentences'}: no prompt of {tokens} tokens: give a smaller --tokens"
            )
        found[name] = rows
    return found


def _setup(
    inverter: Inverter, args: argparse.Namespace, limit: int, tokens: int, texts: dict[str, int]
) -> dict[str, Any]:
    device = inverter.decoder.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "model": args.model,
        "fingerprint": inverter.decoder.fingerprint(),
        "layer": inverter.decoder.layer.name,
        "prompts": f"{texts['c4']} of {args.prompts.name if args.prompts else 'the bundled sentences'}",
        "wikipedia": f"{texts['wikipedia']} of {args.wikipedia.name}" if args.wikipedia else "not measured",
        "tokens_a_prompt": tokens,
        "quick": args.quick,
        "device": f"{device.type}, {machine}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = {
        name: path if (path := SHARED / "text" / f"{name}_eval.jsonl").exists() else None
        for name in ("c4", "wikipedia")
    }
    parser.add_argument(
        "--model", default="bundled", metavar="M", help="Hugging Face id, folder, or `bundled` (default)"
    )
    parser.add_argument(
        "--layer", default=-1, metavar="L", help="hidden_states index, block:k or final_norm (default -1)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda … (default: cuda when there is one)")
    parser.add_argument(
        "--prompts", type=Path, default=here["c4"], metavar="FILE",
        help=".txt or .jsonl (`text`), the C4 of the tables (default: c4_eval.jsonl of $INVERT_FAST_SHARED, else the "
        "package's own sentences)",
    )  # fmt: skip
    parser.add_argument(
        "--wikipedia", type=Path, default=here["wikipedia"], metavar="FILE", help="prompts of Table 2's Wikipedia row"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each kind (default 100; 8 with --quick)")
    parser.add_argument("--tokens", type=int, metavar="T", help="tokens of each prompt (default 10; 2 with --quick)")
    parser.add_argument(
        "--alone",
        type=int,
        metavar="N",
        help="prompts that the unbatched SIPIT and VMA and `sipit` at one lane are given (default 3; 1 with --quick); "
        "the paper's loop and the continuous search at one lane get one",
    )
    parser.add_argument(
        "--searched", type=int, metavar="N", help="prompts of the continuous search's rows (default: all of --limit)"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (default all)")
    parser.add_argument("--quick", action="store_true", help="a look at all tables in under three minutes on one core")
    parser.add_argument(
        "--output", type=Path, default=Path("build/paper_tables"), metavar="NAME",
        help="NAME.json and NAME.md are written (default build/paper_tables)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
