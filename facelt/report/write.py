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
from facelt.report.face_benchmarks import face_benchmark_tables
from facelt.report.figures import draw_sweep
from facelt.report.known_people import known_people_page, known_people_tables
from facelt.report.known_people_schema import KnownPeopleReport
from facelt.report.megaface import megaface_page, megaface_tables
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.schema import SHOT_BAND_NAMES, EvaluationReport, IjbReport, TinyfaceReport
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

EMBEDDINGS_FOLDER = "embeddings"
"""Folder of the embedding store of a report on IJB or TinyFace."""

FolderReport = AuditReport | MegafaceReport | KnownPeopleReport | IjbReport | TinyfaceReport

_PAGE_FILE, _CARD_FILE = "report.html", "model_card.md"
# Patterns of all files but report.json and the tables.
_MORE_FILES: dict[type[FolderReport], tuple[str, ...]] = {
    AuditReport: (_PAGE_FILE, _CARD_FILE),
    MegafaceReport: (_PAGE_FILE, f"{DEVKIT_FOLDER}/*.json", f"{PARTS_FOLDER}/*.npz", f"{PARTS_FOLDER}/*.partial"),
    KnownPeopleReport: (_PAGE_FILE,),
    **dict.fromkeys((IjbReport, TinyfaceReport), (f"{EMBEDDINGS_FOLDER}/*/*",)),
}
_KEPT_FOLDERS = {
    MegafaceReport: PARTS_FOLDER,
    **dict.fromkeys((IjbReport, TinyfaceReport), EMBEDDINGS_FOLDER),
}


@contextmanager
def report_folder(kind: type[FolderReport], out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new folder for a report, which becomes `out` after the block, as by `output_folder`.

    Finished searches of a MegaFace report are kept, and embedding stores, finished or not, of one on IJB or TinyFace.
    """
    files, schema = (REPORT_FILE, "tables/*.csv", *_MORE_FILES[kind]), kind.model_fields["schema_name"].default
    with output_folder(out, files, overwrite, schema=schema, kept=_KEPT_FOLDERS.get(kind)) as folder:
        yield folder


def write_report(report: AuditReport | MegafaceReport | KnownPeopleReport, out: Path, overwrite: bool = False) -> Path:
    """Writes the report into the folder `out`, all its files in one step, and returns the path of `report.html`.

    Raises UserError if `out` holds files, unless these are an earlier report of the same kind and `overwrite` is true;
    and if it cannot be written.
    """
    out = Path(out)
    with report_folder(type(report), out, overwrite) as folder:
        write_report_files(report, folder)
    return out / _PAGE_FILE


def write_report_files(report: FolderReport, folder: Path) -> None:
    """Writes `report.json`, `tables/*.csv` and, but for IJB and TinyFace, `report.html`; of an audit `model_card.md`.

    Everything is rendered before anything is written. Raises UserError if a file cannot be written.
    """
    texts = {REPORT_FILE: json_text(report.json_values())}
    if isinstance(report, AuditReport):
        tables, texts[_PAGE_FILE] = audit_tables(report), audit_page(report)
        texts[_CARD_FILE] = model_card(report) + "\n"
    elif isinstance(report, KnownPeopleReport):
        tables, texts[_PAGE_FILE] = known_people_tables(report), known_people_page(report)
    elif isinstance(report, MegafaceReport):
        tables, texts[_PAGE_FILE] = megaface_tables(report), megaface_page(report)
    else:
        tables = face_benchmark_tables(report)
    texts |= {f"tables/{name}": csv_text(table) for name, table in tables.items()}
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
