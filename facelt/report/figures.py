"""Three figures of long-tail papers, drawn from plain values: features in the plane, gains by class, called concepts.

N points, K classes, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelt.report.picture import picture
from facelt.report.series import PALETTE
from facelt.report.svg import GRID, INK, MUTED
from facelt.report.visible import short

# The open set stands out by having no colour.
OPEN = "open set"
COLOURS = {**dict(zip(("many", "medium", "few"), PALETTE, strict=False)), OPEN: "#b9bfc6"}
TICKS = 8


def draw_points(place_N2: np.ndarray, group_N: Sequence[str], path: Path) -> None:
    """Points coloured by group, the open set beneath the others; the axes have no unit and bear none."""
    group_N = np.asarray(group_N)
    size = float(np.clip(16000 / max(len(place_N2), 1), 4, 40))
    with picture(6.4, 5.6, path) as page:
        axes = page.axes[0, 0]
        for order, group in enumerate(reversed(COLOURS)):
            own_N = group_N == group
            if own_N.any():
                look = {"s": size, "color": COLOURS[group], "lw": 0, "alpha": 0.8, "zorder": order}
                axes.scatter(*place_N2[own_N].T, label=f"{group} ({own_N.sum():,})", **look)
        axes.axis("off")
        axes.set_aspect("equal", adjustable="datalim")
        handles, labels = (part[::-1] for part in axes.get_legend_handles_labels())
        page.figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, markerscale=2)


def draw_gains(gain_K: np.ndarray, group_K: Sequence[str], count_K: np.ndarray, path: Path, *, other: str) -> None:
    """A bar a class in the order given, coloured by group, whose mean gain stands in the key; in percent points.

    A class without a gain (NaN) has no bar and counts in no mean.
    """
    group_K, place_K = np.asarray(group_K), np.arange(len(gain_K))
    percent_K = 100 * gain_K
    with picture(7.2, 3.9, path) as page:
        axes = page.axes[0, 0]
        for group, colour in COLOURS.items():
            own_K = (group_K == group) & ~np.isnan(gain_K)
            if own_K.any():
                label = f"{group} ({percent_K[own_K].mean():+.1f})"
                axes.bar(place_K[own_K], percent_K[own_K], width=0.9, color=colour, lw=0, label=label)
        axes.axhline(0, color=INK, lw=0.8)
        axes.grid(axis="y", color=GRID, lw=0.8)
        shown = np.unique(np.linspace(0, len(gain_K) - 1, min(TICKS, len(gain_K))).round().astype(int))
        axes.set_xticks(shown, [f"{count_K[place]:,}" if group_K[place] != OPEN else "open" for place in shown])
        axes.set_xlabel("training images of the class")
        axes.set_ylabel(f"gain in F1 over {short(other)}, points")
        page.figure.legend(loc="outside upper center", ncols=4, frameon=False)


def draw_concepts(
    rows: Sequence[tuple[tuple[np.ndarray, str], Sequence[tuple[np.ndarray | None, str]]]], path: Path
) -> None:
    """A line of pictures each: the image, and one of each of its concepts, with a line of words below.

    Args:
        rows: ((image uint8 [H,W,3], words), [(picture or None, words), ...]).
        path: without suffix.
    """
    columns = 1 + max(len(concepts) for _, concepts in rows)
    with picture(1.75 * columns, 1.95 * len(rows) + 0.3, path, rows=len(rows), columns=columns) as page:
        for axes_row, (image, concepts) in zip(page.axes, rows, strict=True):
            for axes in axes_row:
                axes.axis("off")
            for axes, (pixels_HW3, words) in zip(axes_row, [image, *concepts], strict=False):
                if pixels_HW3 is not None:
                    axes.imshow(pixels_HW3, interpolation="nearest")
                below = {"transform": axes.transAxes, "ha": "center", "va": "top", "size": 9, "color": MUTED}
                axes.text(0.5, -0.04, short(words), **below)
        for column, axes in enumerate(page.axes[0]):
            axes.set_title(f"concept {column}" if column else "image", size=10)
