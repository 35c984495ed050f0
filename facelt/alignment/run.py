"""A whole set of photographs to aligned faces on disk."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from facelt.alignment.output import Folder, Record
from facelt.alignment.photographs import Photograph
from facelt.alignment.survey import Failure, Terms, survey
from facelt.alignment.tables import FACES, FAILURES, face_row, failure_row
from facelt.errors import UserError
from facelt.report.tables import csv_lines
from facelt.whole_files import fresh_folder

Item = TypeVar("Item")
FACES_FILE, FAILURES_FILE = "faces.csv", "failures.csv"


@dataclass(frozen=True)
class Summary:
    """What came out: photographs that gave `faces`, those that `failed`, and people of whom no photograph gave one."""

    photographs: int
    faces: int
    failed: list[Failure]
    missing: list[str]

    def lines(self) -> list[str]:
        """For people: counts, and what failed by its kind."""
        kinds = Counter(failure.kind for failure in self.failed)
        parts = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
        lines = [f"faces: {self.faces}, in {self.photographs - len(self.failed)} of {self.photographs} photographs"]
        lines += [f"failures to enrol: {len(self.failed)}" + (f" ({', '.join(parts)})" if parts else "")]
        if self.missing:
            first = [*self.missing[:5], *(["..."] if len(self.missing) > 5 else [])]
            lines += [f"people without any face: {len(self.missing)} ({', '.join(first)})"]
        return lines


def align_photographs(photographs: Sequence[Photograph], out: Path, terms: Terms, workers: int = 0) -> Summary:
    """Writes the faces, faces.csv and failures.csv: into `out`, or into its folder where `out` is a .rec.

    The folder is new and whole, or stays absent. Raises UserError: it holds something, no photograph gave a face, or
    what `survey` raises.
    """
    is_record = out.suffix == ".rec"
    if is_record and (out.parent == Path() or (out.parent.is_dir() and any(out.parent.iterdir()))):
        wanted = out.parent / "NEW_FOLDER" / out.name
        raise UserError(f"{out}: its folder exists already, and a .rec gets a new one for all its files; give {wanted}")
    failed, people, faces = [], Counter(), 0
    with fresh_folder(out.parent if is_record else out) as folder:
        output = Record(folder / out.name, photographs) if is_record else Folder(folder, photographs)
        with ExitStack() as stack:
            stack.enter_context(output)
            table, failures = (
                stack.enter_context((folder / name).open("w", encoding="utf-8", newline=""))
                for name in (FACES_FILE, FAILURES_FILE)
            )
            table.write(csv_lines([FACES]))
            failures.write(csv_lines([FAILURES]))
            for item in shown(survey(output.photographs, terms, workers), len(photographs)):
                if isinstance(item, Failure):
                    failed.append(item)
                    failures.write(csv_lines([failure_row(item)]))
                    continue
                people[item.photograph.identity] += 1
                for face in item.faces:
                    name = output.write(item.photograph, face.number if terms.every else None, face.image_HW3)
                    table.write(csv_lines([face_row(name, item, face)]))
                    faces += 1
            if not faces:
                raise no_face(failed)
    missing = sorted({item.identity for item in photographs} - set(people) - {""})
    return Summary(len(photographs), faces, failed, missing)


def no_face(failed: Sequence[Failure]) -> UserError:
    """The mistake that nothing is left, with the first reasons."""
    first = "; ".join(f"{failure.photograph.name}: {failure.reason}" for failure in failed[:3])
    return UserError(f"none of the {len(failed)} photographs gave a face: {first}")


def shown(items: Iterable[Item], total: int) -> Iterable[Item]:
    """The items, with a bar where a person looks on."""
    console = Console(stderr=True)
    return track(items, "aligning", total=total, transient=True, console=console, disable=not console.is_terminal)
