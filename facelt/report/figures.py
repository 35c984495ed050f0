"""Figures of long-tail papers as SVG and PNG files: t-SNE, gain by class, memory concepts, sweeps.

N points, K classes, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facelt.report.drawing import GRID, INK, MARKERS, MUTED, PALETTE, Style, figure_files
from facelt.report.plots import HEIGHT, WIDTH
from facelt.report.schema import SHOT_BAND_NAMES
from facelt.utils.tables import Table
from facelt.utils.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPEN = "open set"
# The open set is grey.
GROUP_COLOURS = {**dict(zip(SHOT_BAND_NAMES, PALETTE, strict=False)), OPEN: "#b9bfc6"}
_MAX_TICKS = 8


def draw_points(position_N2: np.ndarray, group_N: Sequence[str], path: Path) -> None:
    """Draws points coloured by group, the open set beneath the others; the axes have no unit and are hidden."""
    group_N = np.asarray(group_N)
    size = float(np.clip(16000 / max(len(position_N2), 1), 4, 40))
    with figure_files(6.4, 5.6, path) as page:
        axes = page.axes[0, 0]
        for order, group in enumerate(reversed(GROUP_COLOURS)):
            member_N = group_N == group
            if member_N.any():
                look = {"s": size, "color": GROUP_COLOURS[group], "lw": 0, "alpha": 0.8, "zorder": order}
                axes.scatter(*position_N2[member_N].T, label=f"{group} ({member_N.sum():,})", **look)
        axes.axis("off")
        axes.set_aspect("equal", adjustable="datalim")
        handles, labels = (part[::-1] for part in axes.get_legend_handles_labels())
        page.figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, markerscale=2)


def draw_gains(gain_K: np.ndarray, group_K: Sequence[str], count_K: np.ndarray, path: Path, *, baseline: str) -> None:
    """Draws one bar per class in the order given, in percentage points; the key shows each group's mean gain.

    A class without a gain (NaN) has no bar and enters no mean.
    """
    group_K, position_K = np.asarray(group_K), np.arange(len(gain_K))
    percent_K = 100 * gain_K
    with figure_files(7.2, 3.9, path) as page:
        axes = page.axes[0, 0]
        for group, colour in GROUP_COLOURS.items():
            member_K = (group_K == group) & ~np.isnan(gain_K)
            if member_K.any():
                label = f"{group} ({percent_K[member_K].mean():+.1f})"
                axes.bar(position_K[member_K], percent_K[member_K], width=0.9, color=colour, lw=0, label=label)
        axes.axhline(0, color=INK, lw=0.8)
        axes.grid(axis="y", color=GRID, lw=0.8)
        ticks = np.unique(np.linspace(0, len(gain_K) - 1, min(_MAX_TICKS, len(gain_K))).round().astype(int))
        axes.set_xticks(ticks, [f"{count_K[tick]:,}" if group_K[tick] != OPEN else "open" for tick in ticks])
        axes.set_xlabel("training images of the class")
        axes.set_ylabel(f"gain in F1 over {shorten(baseline)}, points")
        page.figure.legend(loc="outside upper center", ncols=4, frameon=False)


def draw_concepts(
    rows: Sequence[tuple[tuple[np.ndarray, str], Sequence[tuple[np.ndarray | None, str]]]], path: Path
) -> None:
    """Draws one row per image: the image, then one image of each of its concepts, each with a caption.

    Args:
        rows: ((image uint8 [H,W,3], caption), [(image or None, caption), ...]).
        path: without suffix.
    """
    columns = 1 + max(len(concepts) for _, concepts in rows)
    with figure_files(1.75 * columns, 1.95 * len(rows) + 0.3, path, rows=len(rows), columns=columns) as page:
        for axes_row, (image, concepts) in zip(page.axes, rows, strict=True):
            for axes in axes_row:
                axes.axis("off")
            for axes, (pixels_HW3, caption) in zip(axes_row, [image, *concepts], strict=False):
                if pixels_HW3 is not None:
                    axes.imshow(pixels_HW3, interpolation="nearest")
                below = {"transform": axes.transAxes, "ha": "center", "va": "top", "size": 9, "color": MUTED}
                axes.text(0.5, -0.04, shorten(caption), **below)
        for column, axes in enumerate(page.axes[0]):
            axes.set_title(f"concept {column}" if column else "image", size=10)


_X_LABELS = {
    "threshold": "threshold",
    "open_classes": "open classes",
    "imbalance": "imbalance of training (largest class / smallest)",
}
_OPEN_LINES = {
    "f_measure_released": "F-measure, released form",
    "f_measure_paper": "F-measure, paper's form",
    "macro_f_with_unknown": "macro-F with the unknown",
    "overall": "known images right",
    "open_rejected": "open images rejected",
}
_CLOSED_LINES = {"overall": "all images", "many": "many shots", "medium": "medium shots", "few": "few shots"}


def draw_sweep(table: Table, path: Path) -> None:
    """Writes path.svg and path.png of a sweep's table (model, x, metrics as fractions).

    One model: all its metrics. Several models: the F-measure in the released form, or without open images the
    accuracy. Missing values (None) are left out.
    """
    column = {name: index for index, name in enumerate(table.header)}
    has_open = any(row[column["f_measure_released"]] is not None for row in table.rows)
    metrics = _OPEN_LINES if has_open else _CLOSED_LINES
    models = list(dict.fromkeys(row[0] for row in table.rows))
    if len(models) == 1:
        lines = [(label, models[0], column[metric]) for metric, label in metrics.items()]
    else:
        lines = [(shorten(model, 40), model, column[next(iter(metrics))]) for model in models]
    with figure_files(WIDTH, HEIGHT + 0.4, path) as page:
        axes = page.axes[0, 0]
        for number, (label, model, index) in enumerate(lines):
            points = [(row[1], 100 * row[index]) for row in table.rows if row[0] == model and row[index] is not None]
            if not points:
                continue
            style = Style(PALETTE[number % len(PALETTE)], number % len(MARKERS))
            axes.plot(
                [x for x, _ in points], [y for _, y in points], label=label, color=style.colour, linestyle=style.dash,
                lw=1.8, marker=style.marker, markersize=5, markeredgecolor="white", markeredgewidth=0.7,
            )  # fmt: skip
        _set_x_axis(axes, table.header[1], sorted({row[1] for row in table.rows}))
        axes.set_xlabel(_X_LABELS[table.header[1]])
        axes.set_ylabel("%" if len(models) == 1 else f"{next(iter(metrics.values()))} (%)")
        axes.grid(color=GRID, lw=0.8)
        page.figure.legend(loc="outside upper center", ncols=2, frameon=False)


def _set_x_axis(axes: "Axes", name: str, values: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    if name == "imbalance":
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(values, [f"{x:,.4g}" for x in values])
    elif name == "open_classes":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif values[0] > 0 and values[-1] > 50 * values[0]:
        # One reachability may be far larger than the others: an image on a centroid.
        axes.set_xscale("log")
