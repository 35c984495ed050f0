"""Report files: `report.json`, and HTML page and CSV tables drawn from it; CSV tables and plots of an evaluation.

T points of a curve.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelt.report.audit import audit_page, audit_tables
from facelt.report.audit_schema import AuditReport
from facelt.report.audit_text import model_card
from facelt.report.figures import draw_sweep
from facelt.report.known_people import known_people_page, known_people_tables
from facelt.report.known_people_schema import KnownPeopleReport
from facelt.report.megaface import megaface_page, megaface_tables
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.schema import SHOT_BAND_NAMES, EvaluationReport
from facelt.utils.json_values import json_text
from facelt.utils.tables import Table, csv_text
from recordio_tools.atomic_io import write_text

# A point per image would make the file of a curve too large.
MAX_CURVE_POINTS = 500


def write_report(report: AuditReport | MegafaceReport | KnownPeopleReport, out: Path) -> Path:
    """Writes `report.json`, `report.html` and `tables/*.csv`, for an audit also `model_card.md`, into the folder `out`.

    Everything is rendered before anything is written, and each file is written atomically. Returns the path of
    `report.html`. Raises UserError if a file cannot be written.
    """
    out = Path(out)
    texts = {out / "report.json": json_text(report.json_values())}
    if isinstance(report, AuditReport):
        tables, page = audit_tables(report), audit_page(report)
        texts[out / "model_card.md"] = model_card(report) + "\n"
    elif isinstance(report, KnownPeopleReport):
        tables, page = known_people_tables(report), known_people_page(report)
    else:
        tables, page = megaface_tables(report), megaface_page(report)
    texts |= {out / "tables" / name: csv_text(table) for name, table in tables.items()}
    texts[out / "report.html"] = page
    for path, text in texts.items():
        write_text(path, text, "choose another folder for the report")
    return out / "report.html"


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """Writes one CSV table and returns its path. Raises UserError if it cannot be written."""
    write_text(path, csv_text(Table(header, rows)), "choose another place for it")
    return path


def write_open(
    out: Path, reports: Sequence[EvaluationReport], curves: Sequence[tuple[np.ndarray, np.ndarray] | None]
) -> list[Path]:
    """Writes confusion.csv and oscr.csv; returns their paths.

    `curves` holds each report's OSCR curve: (share of open images accepted [T], share of known images right [T]).
    """
    names = [report.model.name for report in reports]
    confusions = [
        [name, true, *row.values()]
        for name, report in zip(names, reports, strict=True)
        for true, row in report.open.confusion.items()
    ]
    points = [
        [name, *point]
        for name, curve in zip(names, curves, strict=True)
        if curve is not None
        for point in zip(*(_thinned(side_T) for side_T in curve), strict=True)
    ]
    answers = ("right", *(f"named_{band}" for band in SHOT_BAND_NAMES), "rejected")
    return [
        write_table(out / "confusion.csv", ("model", "true", *answers), confusions),
        write_table(out / "oscr.csv", ("model", "open_accepted", "known_right"), points),
    ]


def _thinned(value_T: np.ndarray) -> list[float]:
    points = min(len(value_T), MAX_CURVE_POINTS)
    return value_T[np.unique(np.linspace(0, len(value_T) - 1, points).round().astype(int))].tolist()


def write_sweep(out: Path, name: str, header: Sequence[str], rows: Sequence[Sequence]) -> list[Path]:
    """Writes a sweep's table and plot as name.csv, name.svg and name.png; returns their paths."""
    table = write_table(out / f"{name}.csv", header, rows)
    draw_sweep(Table(header, rows), out / name)
    return [table, *(out / f"{name}{suffix}" for suffix in (".svg", ".png"))]
