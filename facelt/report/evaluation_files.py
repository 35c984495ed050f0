"""What an evaluation leaves in files: CSV tables, and a plot of a sweep.

Shapes: T points of a curve.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelt.report.evaluation import BANDS
from facelt.report.sweep_plots import draw_sweep
from facelt.report.tables import Table, csv_text
from facelt.whole_files import write_text

# Of a curve: a point for each image would be a table that no one opens.
MOST_POINTS = 500


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """Writes one CSV table; returns its path. Raises UserError where the disk refuses."""
    write_text(path, csv_text(Table(header, rows)), "choose another place for it")
    return path


def write_open(
    out: Path, reports: Sequence[dict], curves: Sequence[tuple[np.ndarray, np.ndarray] | None]
) -> list[Path]:
    """Writes confusion.csv, images by the band of their class (or open) and what they were answered with, and oscr.csv,
    the curve (share of open images accepted [T], of known images named rightly [T]) of each report's model.
    """
    names = [report["model"]["name"] for report in reports]
    confused = [
        [name, true, *row.values()]
        for name, report in zip(names, reports, strict=True)
        for true, row in report["open"]["confusion"].items()
    ]
    points = [
        [name, *point]
        for name, curve in zip(names, curves, strict=True)
        if curve is not None
        for point in zip(*(_thinned(side_T) for side_T in curve), strict=True)
    ]
    answers = ("right", *(f"named_{band}" for band in BANDS), "rejected")
    return [
        write_table(out / "confusion.csv", ("model", "true", *answers), confused),
        write_table(out / "oscr.csv", ("model", "open_accepted", "known_right"), points),
    ]


def write_sweep(out: Path, name: str, header: Sequence[str], rows: Sequence[Sequence]) -> list[Path]:
    """Writes a sweep's table and its plot as name.csv, name.svg and name.png."""
    table = write_table(out / f"{name}.csv", header, rows)
    draw_sweep(Table(header, rows), out / name)
    return [table, *(out / f"{name}{suffix}" for suffix in (".svg", ".png"))]


def _thinned(value_T: np.ndarray) -> list[float]:
    places = np.unique(np.linspace(0, len(value_T) - 1, min(len(value_T), MOST_POINTS)).round().astype(int))
    return value_T[places].tolist()
