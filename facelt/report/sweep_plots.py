"""Sweeps of an evaluation as plots: figures over the threshold, the open classes or the imbalance of training."""

from pathlib import Path

from facelt.report.picture import picture
from facelt.report.plots import HEIGHT, WIDTH
from facelt.report.series import MARKERS, PALETTE, Style
from facelt.report.svg import GRID
from facelt.report.tables import Table
from facelt.report.visible import short

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
        lines = [(short(model, 40), model, column[next(iter(figures))]) for model in models]
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
