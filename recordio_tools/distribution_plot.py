"""A drawing of images per identity, largest first, both axes logarithmic, as SVG without any library."""

import math
from html import escape

import numpy as np

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 44, 60
COLOURS = ("#8a8f98", "#0b62a4", "#b3541e")
POINTS = 300  # of each line, spread evenly over the logarithm of the rank


def distribution_svg(title: str, counts_by_name: dict[str, np.ndarray]) -> str:
    """SVG text; each entry is a name and int64 [C], images of each identity (empty ones are left out)."""
    lines = {name: np.sort(counts[counts > 0])[::-1] for name, counts in counts_by_name.items()}
    decades_x = _decades(max(len(counts) for counts in lines.values()))
    decades_y = _decades(max(int(counts[0]) for counts in lines.values()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="13" fill="#22262b"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        *_grid(decades_x, decades_y),
    ]
    for row, (name, counts) in enumerate(lines.items()):
        colour = COLOURS[row % len(COLOURS)]
        parts.append(_line(counts, decades_x, decades_y, colour))
        y = TOP + 18 + 20 * row
        parts.append(f'<path d="M{WIDTH - 270} {y - 4}h24" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{WIDTH - 240}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _decades(largest: int) -> int:
    return max(1, math.ceil(math.log10(largest)))


def _x(rank: float, decades: int) -> float:
    return LEFT + math.log10(rank) / decades * (WIDTH - LEFT - RIGHT)


def _y(count: float, decades: int) -> float:
    return HEIGHT - BOTTOM - math.log10(count) / decades * (HEIGHT - TOP - BOTTOM)


def _grid(decades_x: int, decades_y: int) -> list[str]:
    parts = []
    for exponent in range(decades_x + 1):
        x = _x(10**exponent, decades_x)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#d9dce1"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{10**exponent:,}</text>')
    for exponent in range(decades_y + 1):
        y = _y(10**exponent, decades_y)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#d9dce1"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**exponent:,}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 16}" text-anchor="middle">identity, by rank (log)</text>')
    turn = f'transform="rotate(-90 18 {middle_y})"'
    parts.append(f'<text x="18" y="{middle_y}" text-anchor="middle" {turn}>images per identity (log)</text>')
    return parts


def _line(counts: np.ndarray, decades_x: int, decades_y: int, colour: str) -> str:
    ranks = np.unique(np.geomspace(1, len(counts), POINTS).round().astype(int))
    points = " ".join(f"{_x(rank, decades_x):.1f},{_y(counts[rank - 1], decades_y):.1f}" for rank in ranks.tolist())
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
