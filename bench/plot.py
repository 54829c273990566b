"""Draw the results of bench_speculative.py: time over that of a bare forward pass against length. Plain SVG.

pytest bench/bench_speculative.py --benchmark-only --benchmark-json out.json
python bench/plot.py out.json [more.json …] docs/speculative.svg
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 220, 44, 34, 40
COLOURS = {1: "#1b6ca8", 16: "#d1495b", 256: "#2e8b57"}
LEAST, LARGEST = -1, 7  # powers of two at the bottom and the top of a panel


def series(paths: list[Path]) -> dict[str, dict[int, list[tuple[int, float]]]]:
    """model → texts → [(length, ratio to the bare forward pass)]."""
    found: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in (row for path in paths for row in json.loads(path.read_text())["benchmarks"]):
        shape = row["params"]
        if row["name"].startswith("bench_texts"):
            model = Path(shape["inverter"]).name
            found[model][shape["texts"]].append((shape["length"], row["extra_info"]["ratio_to_bare_forward"]))
    return found


def panel(model: str, lines: dict[int, list[tuple[int, float]]], left: int) -> list[str]:
    lengths = sorted({length for line in lines.values() for length, _ in line})

    def x(length: float) -> float:
        low, high = math.log(lengths[0]), math.log(max(lengths[-1], lengths[0] + 1))
        return left + LEFT + (math.log(length) - low) / (high - low) * (WIDTH - LEFT - 20)

    def y(ratio: float) -> float:
        return TOP + (LARGEST - math.log2(ratio)) / (LARGEST - LEAST) * (HEIGHT - TOP - BOTTOM)

    out = [f'<text x="{left + LEFT}" y="18" font-weight="bold">{model}</text>']
    for tick in (2**power for power in range(LARGEST + 1)):
        dash = ' stroke-dasharray="4 3"' if tick == 1 else ""
        out.append(
            f'<path d="M{left + LEFT} {y(tick):.1f}H{left + WIDTH - 16}" stroke="#999" stroke-width="0.6"{dash}/>'
        )
        out.append(f'<text x="{left + LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for length in lengths:
        out.append(f'<text x="{x(length):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{length:,}</text>')
    out.append(f'<text x="{left + WIDTH / 2 + 10}" y="{HEIGHT - 6}" text-anchor="middle">tokens a text</text>')
    for texts, line in sorted(lines.items()):
        points = [(x(length), y(ratio)) for length, ratio in sorted(line)]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        out.append(f'<path d="{path}" fill="none" stroke="{COLOURS[texts]}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLOURS[texts]}"/>' for a, b in points]
    return out


def main(*arguments: str) -> None:
    *sources, target = map(Path, arguments)
    models = series(sources)
    width = WIDTH * len(models) + 110
    body = [part for i, (name, lines) in enumerate(models.items()) for part in panel(name, lines, i * WIDTH)]
    for i, (texts, colour) in enumerate(COLOURS.items()):
        at, side = TOP + 18 * i, WIDTH * len(models) + 6
        body.append(f'<path d="M{side} {at}h16" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{side + 22}" y="{at + 4}">{texts} {"text" if texts == 1 else "texts"}</text>')
    at, side = TOP + 18 * (len(COLOURS) + 1), WIDTH * len(models) + 6
    body.append(f'<text x="{side}" y="{at}">time / bare</text><text x="{side}" y="{at + 14}">forward pass</text>')
    size = f'width="{width}" height="{HEIGHT}" font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    back = f'<rect width="{width}" height="{HEIGHT}" fill="white"/>'
    target.write_text("\n".join([head, back, *body, "</svg>"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
