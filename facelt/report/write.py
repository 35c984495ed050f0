"""Report files: `report.json`, and HTML page and CSV tables drawn from it; CSV tables and plots of an evaluation.

T points of a curve.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from facelt.utils.output_folder import REPORT_FILE, output_folder
from facelt.utils.tables import Table, csv_text
from recordio_tools.atomic_io import write_text

# A point per image would make the file of a curve too large.
MAX_CURVE_POINTS = 500


FIGURE_SUFFIXES = (".csv", ".svg", ".png")

DEVKIT_FOLDER, PARTS_FOLDER = "devkit", "parts"
"""Folders of a MegaFace report: files in the format of the development kit, and finished searches."""

EVALUATION_FILES = (
    "confusion.csv",
    "oscr.csv",
    *(f"{sweep}{suffix}" for sweep in ("threshold", "open-classes", "longtailness") for suffix in FIGURE_SUFFIXES),
)
"""Files of an evaluation on the training classes."""

FolderReport = AuditReport | MegafaceReport | KnownPeopleReport

_REPORT_FILES = (REPORT_FILE, "report.html", "tables/*.csv")
_MORE_FILES: dict[type[FolderReport], tuple[str, ...]] = {
    AuditReport: ("model_card.md",),
    MegafaceReport: (f"{DEVKIT_FOLDER}/*.json", f"{PARTS_FOLDER}/*.npz", f"{PARTS_FOLDER}/*.partial"),
    KnownPeopleReport: (),
}


@contextmanager
def report_folder(kind: type[FolderReport], out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder for a report, which becomes `out` after the block, as by `output_folder`.

    The finished searches of a MegaFace report are kept.
    """
    schema, kept = kind.model_fields["schema_name"].default, PARTS_FOLDER if kind is MegafaceReport else None
    with output_folder(out, (*_REPORT_FILES, *_MORE_FILES[kind]), overwrite, schema=schema, kept=kept) as folder:
        yield folder


def write_report(report: FolderReport, out: Path, overwrite: bool = False) -> Path:
    """Writes the report into the folder `out`, all its files in one step, and returns the path of `report.html`.

    Raises UserError if `out` holds files, unless these are an earlier report of the same kind and `overwrite` is true;
    and if it cannot be written.
    """
    out = Path(out)
    with report_folder(type(report), out, overwrite) as folder:
        write_report_files(report, folder)
    return out / "report.html"


def write_report_files(report: FolderReport, folder: Path) -> None:
    """Writes `report.json`, `report.html` and `tables/*.csv`, for an audit also `model_card.md`.

    Everything is rendered before anything is written. Raises UserError if a file cannot be written.
    """
    texts = {REPORT_FILE: json_text(report.json_values())}
    if isinstance(report, AuditReport):
        tables, page = audit_tables(report), audit_page(report)
        texts["model_card.md"] = model_card(report) + "\n"
    elif isinstance(report, KnownPeopleReport):
        tables, page = known_people_tables(report), known_people_page(report)
    else:
        tables, page = megaface_tables(report), megaface_page(report)
    texts |= {f"tables/{name}": csv_text(table) for name, table in tables.items()}
    texts["report.html"] = page
    for name, text in texts.items():
        write_text(folder / name, text, "choose another folder for the report")


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
