"""Are the posteriors of `Beam` what comes true? Stated against true confidence, for several levels of noise.

    python bench/noise_calibration.py [--prompts 100] [--tokens 32] [--levels 0.01 0.05 0.1 0.2 0.5] [--kind gaussian]
        [--output noise.json] [--svg docs/noise.svg]

First lines of C4 (the bundled sentences where that is not at hand) on the bundled model's last layer. Prints a table:
tokens right by `beam`, `argmin` and the lens alone, what `beam` stated, the expected calibration error (ten bins), how
many tokens were certified, how many of them wrongly (which ends the run with an error), and forward tokens a token. It
goes on where it was stopped: what is in --output is not measured again.
"""

import argparse
import json
import sys
from pathlib import Path

from noisy import STRATEGIES, Found, by_lens, invert, with_noise
from tqdm import tqdm
from workloads import real_rows

from invert_fast import Inverter, Noise
from invert_fast.reports.calibration import Bin, bins, calibration_error

_AT_ONCE = 10  # prompts, after which what was found is written
WIDTH, HEIGHT, LEFT, TOP = 210, 220, 34, 28


def measure(inverter: Inverter, rows: list[list[int]], kind: str, level: float, start: int) -> dict[str, dict]:
    """All that is kept of a few prompts at one level. start: number of the first, which its noise is drawn by."""
    states, noise = with_noise(inverter.capture(rows), kind, level, start), Noise(kind, level)
    found: dict[str, Found] = {name: invert(inverter, states, rows, way, noise) for name, way in STRATEGIES.items()}
    found["lens"] = by_lens(inverter, states, rows)
    return {name: vars(one) for name, one in found.items()}


def joined(parts: list[dict[str, dict]]) -> dict[str, Found]:
    """What was found of all prompts of a level."""
    whole = {name: Found() for name in parts[0]}
    for part in parts:
        for name, own in part.items():
            for key in ("right", "certified", "stated"):
                getattr(whole[name], key).extend(own[key])
            whole[name].forward += own["forward"]
    return whole


def table(levels: dict[str, dict[str, Found]]) -> list[str]:
    lines = [
        "| noise | beam | argmin | lens | stated | ECE | certified | wrong | forward/token | of argmin |",
        "| - | - | - | - | - | - | - | - | - | - |",
    ]
    for level, found in levels.items():
        beam, argmin, lens = (found[name].figures() for name in ("beam", "argmin", "lens"))
        stated = found["beam"].stated
        lines.append(
            f"| {float(level):.1%} | {beam['right']:.2%} | {argmin['right']:.2%} | {lens['right']:.2%} "
            f"| {sum(stated) / len(stated):.2%} | {calibration_error(stated, found['beam'].right):.4f} "
            f"| {beam['certified']:.1%} | {beam['wrong'] + argmin['wrong']} | {beam['forward']:.1f} "
            f"| {argmin['forward']:.1f} |"
        )
    return lines


def panel(title: str, points: list[Bin], tokens: int, left: float) -> list[str]:
    """Stated probability across, share that was right upwards; a dot's area is its share of the tokens."""
    side = WIDTH - LEFT - 12

    def at(across: float, up: float) -> tuple[float, float]:
        return left + LEFT + across * side, TOP + (1 - up) * side

    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    out = [f'<text x="{x0}" y="18" font-weight="bold">{title}</text>']
    out.append(f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#999" stroke-dasharray="4 3"/>')
    out.append(f'<path d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}" fill="none" stroke="#333" stroke-width="0.8"/>')
    for share in (0, 0.5, 1):
        x, y = at(share, share)
        out.append(f'<text x="{x:.1f}" y="{y0 + 14:.1f}" text-anchor="middle">{share:g}</text>')
        out.append(f'<text x="{x0 - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
    for one in points:
        x, y = at(one.stated, one.right)
        radius = 2 + 10 * (one.count / tokens) ** 0.5
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#1b6ca8" fill-opacity="0.55"/>')
    return out


def draw(levels: dict[str, dict[str, Found]], target: Path) -> None:
    body = []
    for number, (level, found) in enumerate(levels.items()):
        beam = found["beam"]
        title = f"noise {float(level):g}, ECE {calibration_error(beam.stated, beam.right):.3f}"
        body += panel(title, bins(beam.stated, beam.right), len(beam.right), number * WIDTH)
    width = WIDTH * len(levels)
    body.append(f'<text x="{LEFT}" y="{HEIGHT - 4}">across: stated posterior; upwards: share of tokens right</text>')
    target.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{HEIGHT}" fill="#fff"/>{"".join(body)}</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2, 0.5])
    parser.add_argument("--kind", choices=("gaussian", "laplacian"), default="gaussian")
    parser.add_argument("--output", type=Path, default=Path("noise.json"))
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    inverter = Inverter.from_pretrained("bundled", device="cpu")
    rows, source = real_rows(inverter, args.prompts, args.tokens)
    kept: dict[str, dict] = json.loads(args.output.read_text()) if args.output.exists() else {}
    work = [(level, start) for level in args.levels for start in range(0, args.prompts, _AT_ONCE)]
    names = {place: f"{args.kind}:{place[0]:g}:{place[1]}:{args.tokens}:{source}" for place in work}
    for place in tqdm(work, unit="batch"):
        if names[place] not in kept:
            level, start = place
            kept[names[place]] = measure(inverter, rows[start : start + _AT_ONCE], args.kind, level, start)
            args.output.write_text(json.dumps(kept))
    levels = {
        f"{level:g}": joined([kept[names[place]] for place in work if place[0] == level]) for level in args.levels
    }
    print(f"{args.prompts} prompts of {args.tokens} tokens, {source}, {args.kind}\n")
    print("\n".join(table(levels)))
    if args.svg:
        draw(levels, args.svg)
    wrong = sum(int(one.figures()["wrong"]) for found in levels.values() for one in found.values())
    sys.exit(f"{wrong} tokens were certified and are wrong" if wrong else 0)


if __name__ == "__main__":
    main()
