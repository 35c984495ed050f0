"""How answers are told: a table for machines, lines for people. P probes."""

import json
from collections.abc import Sequence
from pathlib import Path

from facelt.gallery import Answer
from facelt.report.tables import Table, csv_text
from facelt.report.visible import visible
from facelt.whole_files import write_text

HEADER = ("probe", "answer", "rank", "person", "score", "sample")


def answer_rows(keys: Sequence[str], answers: Sequence[Answer]) -> list[tuple]:
    """A row for each candidate; of an unknown probe one without a person, with the score of the nearest one.

    Whether somebody is known stands in a column of its own: a person may be called `unknown`.
    """
    rows: list[tuple] = []
    for key, answer in zip(keys, answers, strict=True):
        for rank, one in enumerate(answer.candidates, start=1):
            rows.append((key, "known", rank, one.person, one.score, one.key))
        if not answer.is_known:
            rows.append((key, "unknown", None, None, answer.best.score if answer.best else None, None))
    return rows


def write_answers(path: Path, keys: Sequence[str], answers: Sequence[Answer]) -> None:
    """As JSON where the file is called so, else as CSV that no spreadsheet runs."""
    rows = answer_rows(keys, answers)
    if path.suffix == ".json":
        write_text(path, json.dumps([dict(zip(HEADER, row, strict=True)) for row in rows], indent=1) + "\n")
    else:
        write_text(path, csv_text(Table(HEADER, rows)))


def answer_line(key: str, answer: Answer) -> str:
    """What the terminal shows of one probe."""
    if answer.is_known:
        told = ", ".join(f"{visible(one.person)} {one.score:.3f}" for one in answer.candidates)
    else:
        told = "unknown" + (f" (nearest {answer.best.score:.3f})" if answer.best else "")
    return f"{visible(key)}: {told}"
