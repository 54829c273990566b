"""How much of a text comes back from states that were stored coarsely, or got noise: at every layer of a model.

    python bench/robustness.py [--model bundled] [--prompts 40] [--tokens 32] [--layers 0 block:1 -1]
        [--noise 0.01 0.05 0.1 0.2 0.5] [--kind gaussian] [--output robustness.json] [--markdown FILE.md]

Storage: fp32, bf16, fp16, fp8 and int8 states of an fp32 pass, by `auto`. Noise: `beam` against `argmin`, which takes
the nearest token at every step, and the draft of the lens; all but it are told the level. Columns: share of tokens that
is right, share certified, how many are certified and wrong (which ends the run with an error), and forward tokens
a token. Each cell is written when it is done, and what is there is not measured again. The lens and tolerances of each
layer are fitted on first use; --estimate only says how long the rest would take, from the cells that are there.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from noisy import STRATEGIES, by_lens, invert, with_noise
from tqdm import tqdm
from workloads import real_rows

from invert_fast import Inverter, Noise

STORED = ("float32", "bfloat16", "float16", "fp8_e4m3", "fp8_e5m2", "int8")
HEAD = ["| layer | states | by | right | certified | wrong | forward/token |", "| - | - | - | - | - | - | - |"]


def layers_of(inverter: Inverter) -> list[str]:
    """All places that states are taken from, from the embeddings to the final norm."""
    layer = inverter.decoder.layer
    return ["embeddings", *(f"block:{k}" for k in range(layer.blocks - 1)), "final_norm"]


def cells(layers: list[str], levels: list[float], kind: str) -> list[tuple[str, str, str]]:
    """(layer, states, by) of all that is measured, layer by layer."""
    found = []
    for layer in layers:
        found += [(layer, dtype, "auto") for dtype in STORED]
        found += [(layer, f"{kind}:{level:g}", by) for level in levels for by in (*STRATEGIES, "lens")]
    return found


def measure(inverter: Inverter, rows: list[list[int]], states: str, by: str) -> dict[str, float | int]:
    kind, _, level = states.partition(":")
    start = time.perf_counter()
    if level:
        given = with_noise(inverter.capture(rows), kind, float(level))
        noise = Noise(kind, float(level))
        found = by_lens(inverter, given, rows) if by == "lens" else invert(inverter, given, rows, STRATEGIES[by], noise)
    else:
        found = invert(inverter, inverter.capture(rows, store_dtype=states), rows, by)
    return found.figures() | {"seconds": round(time.perf_counter() - start, 2)}


def table(kept: dict[str, dict], names: dict[tuple[str, str, str], str]) -> list[str]:
    lines = list(HEAD)
    for (layer, states, by), name in names.items():
        if name in kept:
            one = kept[name]
            lines.append(
                f"| {layer} | {states} | {by} | {one['right']:.2%} | {one['certified']:.1%} | {one['wrong']} "
                f"| {one['forward']:.2f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--layers", nargs="+", help="default: every layer")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2, 0.5])
    parser.add_argument("--kind", choices=("gaussian", "laplacian"), default="gaussian")
    parser.add_argument("--output", type=Path, default=Path("robustness.json"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--estimate", action="store_true")
    args = parser.parse_args()
    inverter = Inverter.from_pretrained(args.model)
    rows, source = real_rows(inverter, args.prompts, args.tokens)
    work = cells(args.layers or layers_of(inverter), args.noise, args.kind)
    about = f"{inverter.decoder.fingerprint()}|{args.prompts}x{args.tokens}|{source}"
    names = {place: "|".join([about, *place]) for place in work}
    kept: dict[str, dict] = json.loads(args.output.read_text()) if args.output.exists() else {}
    left = [place for place in work if names[place] not in kept]
    if args.estimate:
        known = [one["seconds"] / one["tokens"] for one in kept.values()]
        each = sum(known) / max(1, len(known)) * args.prompts * args.tokens
        print(f"{len(left)} of {len(work)} cells are left, about {len(left) * each / 60:.0f} minutes")
        return
    layer = inverter.decoder.layer.name
    for place in tqdm(left, unit="cell"):
        if place[0] != layer:
            inverter, layer = Inverter.from_pretrained(args.model, place[0]), place[0]
        kept[names[place]] = measure(inverter, rows, *place[1:])
        args.output.write_text(json.dumps(kept, indent=1))
    lines = [f"{args.prompts} prompts of {args.tokens} tokens, {source}, {args.model}", "", *table(kept, names)]
    print("\n".join(lines))
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")
    wrong = sum(int(kept[name]["wrong"]) for name in names.values())
    sys.exit(f"{wrong} tokens were certified and are wrong" if wrong else 0)


if __name__ == "__main__":
    main()
