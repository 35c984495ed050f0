"""Three figures of long-tail papers, drawn from plain values: features in the plane, gains by class, called concepts.

N points, K classes, H height, W width.

Sweeps of an evaluation as plots: figures over the threshold, the open classes or the imbalance of training.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelt.report.drawing import GRID, INK, MARKERS, MUTED, PALETTE, Style, picture
from facelt.report.plots import HEIGHT, WIDTH
from facelt.utils.tables import Table
from facelt.utils.text import shorten

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
        axes.set_ylabel(f"gain in F1 over {shorten(other)}, points")
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
                axes.text(0.5, -0.04, shorten(words), **below)
        for column, axes in enumerate(page.axes[0]):
            axes.set_title(f"concept {column}" if column else "image", size=10)


X_LABELS = {
    "threshold": "threshold",
    "open_classes": "open classes",
    "imbalance": "imbalance of training (largest class / smallest)",
}
OPEN_FIGURES = {
    "f_measure_released": "F-measure, released form",
    "f_measure_paper": "F-measure, paper's form",
    "macro_f_with_unknown": "macro-F with the unknown",
    "overall": "known images right",
    "open_rejected": "open images rejected",
}
CLOSED_FIGURES = {"overall": "all images", "many": "many shots", "medium": "medium shots", "few": "few shots"}


def draw_sweep(table: Table, path: Path) -> None:
    """Writes path.svg and path.png of a sweep's table (model, x, figures as fractions).

    Of one model all figures are drawn, of several the F-measure in the released form, or the accuracy where no open
    images were asked for. What is missing (None) is left out.
    """
    column = {name: place for place, name in enumerate(table.header)}
    is_open = any(row[column["f_measure_released"]] is not None for row in table.rows)
    figures = OPEN_FIGURES if is_open else CLOSED_FIGURES
    models = list(dict.fromkeys(row[0] for row in table.rows))
    if len(models) == 1:
        lines = [(label, models[0], column[figure]) for figure, label in figures.items()]
    else:
        lines = [(shorten(model, 40), model, column[next(iter(figures))]) for model in models]
    with picture(WIDTH, HEIGHT + 0.4, path) as page:
        axes = page.axes[0, 0]
        for number, (label, model, place) in enumerate(lines):
            points = [(row[1], 100 * row[place]) for row in table.rows if row[0] == model and row[place] is not None]
            if not points:
                continue
            style = Style(PALETTE[number % len(PALETTE)], number % len(MARKERS))
            axes.plot(
                [x for x, _ in points], [y for _, y in points], label=label, color=style.colour, linestyle=style.dash,
                lw=1.8, marker=style.marker, markersize=5, markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        _x_axis(axes, table.header[1], sorted({row[1] for row in table.rows}))
        axes.set_xlabel(X_LABELS[table.header[1]])
        axes.set_ylabel("%" if len(models) == 1 else f"{next(iter(figures.values()))} (%)")
        axes.grid(color=GRID, lw=0.8)
        page.figure.legend(loc="outside upper center", ncols=2, frameon=False)


def _x_axis(axes, name: str, places: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    if name == "imbalance":
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(places, [f"{x:,.4g}" for x in places])
    elif name == "open_classes":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif places[0] > 0 and places[-1] > 50 * places[0]:
        # Reachability: an image on a centroid would push all others into a corner.
        axes.set_xscale("log")
