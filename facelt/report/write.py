"""Writing a report: `report.json` is the truth, `report.html` and `tables/*.csv` are drawn from it."""

from pathlib import Path
from types import MappingProxyType

from facelt.report import audit, megaface
from facelt.utils.json_values import json_text, plain
from facelt.utils.tables import csv_text
from recordio_tools.atomic_io import write_text

# How each schema is drawn: a module with check(report), page(report) and tables(report), and texts(report) where there
# are further files.
VIEWS = MappingProxyType({megaface.SCHEMA: megaface, audit.SCHEMA: audit})


def write_report(report: dict, out: Path) -> Path:
    """Write `report.json`, `report.html` and `tables/*.csv` into the folder `out`, made where it is missing.

    Everything is drawn before anything is written, and each file appears whole or not at all. numpy scalars and arrays
    are taken as numbers and lists, NaN as null.

    Args:
        report: a dictionary whose `schema` is one of `VIEWS`; rates as fractions.
        out: the folder.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: a file cannot be written.
        ValueError: an unknown schema, or a key of it that is missing.
        TypeError: a value that JSON cannot hold.
    """
    report = plain(report)
    view = VIEWS.get(report.get("schema"))
    if view is None:
        raise ValueError(f"unknown report schema {report.get('schema')!r}: known are {', '.join(VIEWS)}")
    view.check(report)
    out = Path(out)
    page = out / "report.html"
    drawn = {out / "report.json": json_text(report)}
    drawn |= {out / "tables" / name: csv_text(table) for name, table in view.tables(report).items()}
    drawn |= {out / name: text for name, text in getattr(view, "texts", _no_texts)(report).items()}
    drawn[page] = view.page(report)
    for path, text in drawn.items():
        write_text(path, text, "choose another folder for the report")
    return page


def _no_texts(report: dict) -> dict[str, str]:
    return {}
