"""Draw what certify_campaign.py measured: residuals of true tokens, what is asked of rivals, and where they are.

python bench/certify_campaign.py --json out.json && python bench/plot_certificates.py out.json docs/certificates.svg
"""

import json
import math
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, ACROSS = 320, 210, 44, 34, 40, 3
LINES = {
    "true": ("#1b6ca8", "residual of the true token"),
    "required": ("#d1495b", "asked of a rival"),
    "bound": ("#b58900", "untried tokens are held to be this far, at least"),
    "rival": ("#2e8b57", "nearest of eight rivals"),
}
LEAST, LARGEST = -7, 1  # powers of ten at the left and the right of a panel


def panel(title: str, figures: dict[str, list[float]], left: float, top: float) -> list[str]:
    """The share of positions, from none to all, whose figure is below what stands on the axis."""

    def x(value: float) -> float:
        place = (min(max(math.log10(max(value, 1e-30)), LEAST), LARGEST) - LEAST) / (LARGEST - LEAST)
        return left + LEFT + place * (WIDTH - LEFT - 16)

    def y(share: float) -> float:
        return top + TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    out = [f'<text x="{left + LEFT}" y="{top + 20}" font-weight="bold">{title}</text>']
    for share in (0, 0.5, 1):
        out.append(f'<path d="M{left + LEFT} {y(share):.1f}H{left + WIDTH - 16}" stroke="#ccc" stroke-width="0.6"/>')
        out.append(f'<text x="{left + LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for power in range(LEAST, LARGEST + 1, 2):
        at = x(10.0**power)
        out.append(f'<path d="M{at:.1f} {y(1):.1f}V{y(0):.1f}" stroke="#eee" stroke-width="0.6"/>')
        out.append(f'<text x="{at:.1f}" y="{y(0) + 15:.1f}" text-anchor="middle">1e{power}</text>')
    for name, (colour, _) in LINES.items():
        values = sorted(v for v in figures[name] if math.isfinite(v))
        steps = [(x(values[int(k / 200 * (len(values) - 1))]), y(k / 200)) for k in range(201)] if values else []
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in steps)
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    return out


def main(*arguments: str) -> None:
    *sources, target = map(Path, arguments)
    panels = {title: figures for path in sources for title, figures in json.loads(path.read_text()).items()}
    rows = -(-len(panels) // ACROSS)
    width, height = WIDTH * min(ACROSS, len(panels)), HEIGHT * rows + 30
    body = [
        line
        for number, (title, figures) in enumerate(panels.items())
        for line in panel(title, figures, number % ACROSS * WIDTH, number // ACROSS * HEIGHT)
    ]
    for number, (colour, text) in enumerate(LINES.values()):
        at = LEFT + number % 4 * 230
        body.append(f'<path d="M{at} {height - 14}h22" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{at + 28}" y="{height - 10}">{text}</text>')
    target.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>{"".join(body)}</svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
