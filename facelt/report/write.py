"""Report files: `report.json`, and `report.html` and `tables/*.csv` drawn from it."""

from pathlib import Path

from facelt.report.audit import audit_page, audit_tables
from facelt.report.audit_schema import AuditReport
from facelt.report.audit_text import model_card
from facelt.report.megaface import megaface_page, megaface_tables
from facelt.report.megaface_schema import MegafaceReport
from facelt.utils.json_values import json_text
from facelt.utils.tables import csv_text
from recordio_tools.atomic_io import write_text


def write_report(report: AuditReport | MegafaceReport, out: Path) -> Path:
    """Writes `report.json`, `report.html` and `tables/*.csv`, for an audit also `model_card.md`, into the folder `out`.

    Everything is rendered before anything is written, and each file is written atomically. Returns the path of
    `report.html`. Raises UserError if a file cannot be written.
    """
    out = Path(out)
    texts = {out / "report.json": json_text(report.json_values())}
    if isinstance(report, AuditReport):
        tables, page = audit_tables(report), audit_page(report)
        texts[out / "model_card.md"] = model_card(report) + "\n"
    else:
        tables, page = megaface_tables(report), megaface_page(report)
    texts |= {out / "tables" / name: csv_text(table) for name, table in tables.items()}
    texts[out / "report.html"] = page
    for path, text in texts.items():
        write_text(path, text, "choose another folder for the report")
    return out / "report.html"
