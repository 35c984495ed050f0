"""`identities.csv` beside a face set: label, name, gender, images, and any further column."""

import csv
import io
from pathlib import Path

import numpy as np

from recordio_tools.errors import RecordIOError

NAME = "identities.csv"


class IdentityTable:
    """Rows by label. Raises RecordIOError where the file has no `label` column or a label twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[int, dict[str, str]] = {}
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream, strict=True)
                self.columns = list(reader.fieldnames or [])
                if "label" not in self.columns:
                    raise RecordIOError(f"{path}: the header names no column label")
                for row in reader:
                    self._add(row, reader.line_num)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise RecordIOError(f"{path}: cannot be read ({error})") from None

    def _add(self, row: dict, line: int) -> None:
        label = (row["label"] or "").strip()
        if None in row or None in row.values() or not label.isdecimal() or int(label) in self._rows:
            raise RecordIOError(f"{self.path}: line {line} lacks a column, has one too many, or repeats its label")
        self._rows[int(label)] = row

    def relabelled(self, labels: np.ndarray, counts: np.ndarray) -> str:
        """CSV text of the rows of `labels` [C], numbered from 0, with `counts` [C] as images."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        for new_label, (label, count) in enumerate(zip(labels.tolist(), counts.tolist(), strict=True)):
            if label not in self._rows:
                raise RecordIOError(f"{self.path}: no row has label {label}")
            changed = {"label": new_label, **({"images": count} if "images" in self.columns else {})}
            writer.writerow({**self._rows[label], **changed})
        return text.getvalue()
