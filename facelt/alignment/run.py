"""Many photographs, one after the other: their faces, or why there are none.

Where aligned faces go: PNG files in folders by identity, or a .rec in InsightFace's layout.

What is said of aligned faces and of photographs without: the columns of faces.csv and failures.csv.

A whole set of photographs to aligned faces on disk.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple, Protocol, TypeVar

import cv2
import numpy as np

from facelt.alignment.align import SIZE, AlignedFace, Detector, align_faces
from facelt.alignment.detectors import open_detector
from facelt.alignment.photographs import Photograph, read_photograph, refuse_nameless
from facelt.data.decode import BadImageError, prepare_opencv
from facelt.errors import UserError
from facelt.utils.tables import csv_lines
from recordio_tools.atomic_io import atomic_folder
from recordio_tools.face_set import IDENTITIES_FILE, write_identities
from recordio_tools.image_header import DEFAULT_MAX_PIXELS
from recordio_tools.progress import ProgressFn, no_progress, track
from recordio_tools.writer import FaceRecordWriter

CHUNK = 4  # photographs a worker takes at a time


@dataclass(frozen=True)
class Terms:
    """What counts as a face: which detector (`KIND:PATH`), its least score or None, all faces or the largest, and how
    many pixels a photograph may have."""

    detector: str
    min_score: float | None = None
    every: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS


class Failure(NamedTuple):
    """A photograph that nobody can be enrolled from: `kind` is `no face` or `unusable`."""

    photograph: Photograph
    kind: str
    reason: str


class Found(NamedTuple):
    """What a photograph gave: the chosen faces, and how many it shows."""

    photograph: Photograph
    faces: list[AlignedFace]
    shown: int


_detector: Detector
"""A worker's own."""


def survey(photographs: Sequence[Photograph], terms: Terms, workers: int = 0) -> Iterator[Found | Failure]:
    """One answer for each photograph, in order; `workers` processes look at them, 0 this one.

    Raises UserError where the detector cannot be opened, or a worker died.
    """
    if not workers:
        prepare_opencv()
        yield from map(partial(look, open_detector(terms.detector, terms.min_score), terms), photographs)
        return
    open_detector(terms.detector, terms.min_score)  # what is wrong with it is told once, here
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (terms,)) as pool:
        try:
            yield from pool.map(partial(_look, terms), photographs, chunksize=CHUNK)
        except BrokenProcessPool:
            raise UserError("a worker that aligns faces was killed; give fewer --workers or more memory") from None


def look(detector: Detector, terms: Terms, photograph: Photograph) -> Found | Failure:
    """The faces of one photograph."""
    try:
        faces = align_faces(read_photograph(photograph.place, terms.max_pixels), detector)
    except BadImageError as error:
        return Failure(photograph, "unusable", str(error))
    if not faces:
        return Failure(photograph, "no face", f"no face with a score of {detector.min_score:g} or more")
    return Found(photograph, faces if terms.every else faces[:1], len(faces))


def _begin(terms: Terms) -> None:
    global _detector
    Thread(target=_end_with_parent, daemon=True).start()
    prepare_opencv()
    _detector = open_detector(terms.detector, terms.min_score)


def _end_with_parent() -> None:
    # A killed one closes no pool, and its workers would wait for photographs for ever.
    parent_process().join()
    os._exit(1)


def _look(terms: Terms, photograph: Photograph) -> Found | Failure:
    return look(_detector, terms, photograph)


_FORBIDDEN = re.compile(r'[\\/:*?"<>|]')
LONGEST = 200  # bytes of a file's name, of the 255 that most systems take


class Output(AbstractContextManager, Protocol):
    """A context manager that takes faces, grouped by the order of `photographs`."""

    photographs: list[Photograph]

    def write(self, photograph: Photograph, number: int | None, image_HW3: np.ndarray) -> str:
        """Keeps an RGB picture and returns its name; `number` None where a photograph gives one face only."""


class Folder:
    """`folder`/.../IDENTITY/NAME.png: folders as the photographs lie in, the last one bearing the identity's name."""

    def __init__(self, folder: Path, photographs: Sequence[Photograph]) -> None:
        self.photographs = list(photographs)
        self._folder = folder
        self._parents: dict[tuple[str, ...], str] = {}
        self._made: set[str] = set()
        self._taken: set[str] = set()

    def write(self, photograph: Photograph, number: int | None, image_HW3: np.ndarray) -> str:
        path = Path(photograph.name)
        # A label, or a name from the file's, is no folder of the photograph's.
        known = path.parent.name == photograph.identity
        parent = self._parent(path.parent.parts if known else (photograph.identity,))
        which = "" if number is None else f"_{number}"
        # x.jpg and x.png may lie side by side.
        stems = chain([path.stem, path.name], (f"{path.name}_{copy}" for copy in count(2)))
        names = (str(Path(parent, f"{_file_name(stem)}{which}.png")) for stem in stems)
        name = next(name for name in names if name.casefold() not in self._taken)
        self._taken.add(name.casefold())
        (self._folder / parent).mkdir(parents=True, exist_ok=True)
        (self._folder / name).write_bytes(_png(image_HW3))
        return name

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _parent(self, parts: tuple[str, ...]) -> str:
        """The folder for photographs of one folder; two that differ in case or forbidden characters only stay two."""
        if parts not in self._parents:
            safe = "/".join(_file_name(part) for part in parts if part)
            names = chain([safe], (f"{safe}~{copy}" for copy in count(2)))
            self._parents[parts] = next(name for name in names if name.casefold() not in self._made)
            self._made.add(self._parents[parts].casefold())
        return self._parents[parts]


class Record:
    """A .rec, .idx, `property` and identities.csv; a name's label is its place among the sorted ones.

    People without a face keep their label and have no image. Raises UserError where nobody says whom a photograph
    shows.
    """

    def __init__(self, path: Path, photographs: Sequence[Photograph]) -> None:
        advice = "put photographs in a folder a person, take names from files with --people file, or write a folder"
        refuse_nameless(((item.name, item.identity) for item in photographs), "a .rec", advice)
        names = {item.identity for item in photographs}
        ordered = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
        self._labels = {name: label for label, name in enumerate(ordered)}
        self._images: Counter[str] = Counter()
        self.photographs = sorted(photographs, key=lambda item: self._labels[item.identity])
        self._writer = FaceRecordWriter(path, (SIZE, SIZE), len(ordered))

    def write(self, photograph: Photograph, number: int | None, image_HW3: np.ndarray) -> str:
        self._images[photograph.identity] += 1
        return str(self._writer.write(self._labels[photograph.identity], _png(image_HW3)))

    def __enter__(self) -> "Record":
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)
        # Read again by name, so that a cell holds the name as it is.
        rows = [{"label": label, "name": name, "images": self._images[name]} for name, label in self._labels.items()]
        write_identities(self._writer.path.with_name(IDENTITIES_FILE), rows)


def _file_name(text: str) -> str:
    """The text as a file's name on any system, without its suffix."""
    short = text.encode()[:LONGEST].decode(errors="ignore")
    return _FORBIDDEN.sub("_", short).strip(" .") or "_"


def _png(image_HW3: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR))[1].tobytes()


POINTS = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
"""Left and right of the picture, as one looks at it."""
PLACE = ("left", "top", "right", "bottom", *(f"{point}_{axis}" for point in POINTS for axis in "xy"))
QUALITY = ("score", "eye_distance", "sharpness", "yaw", "pitch", "roll")
FACES = ("image", "identity", "source", "face", "faces", *QUALITY, *PLACE)
FAILURES = ("source", "identity", "kind", "reason")


def quality_row(face: AlignedFace) -> list[float]:
    """The values under `QUALITY`, rounded to what they can tell."""
    return [round(face.face.score, 3), *(round(value, 1) for value in face.quality)]


def face_row(image: str, found: Found, face: AlignedFace) -> list[object]:
    """The values under `FACES`. Places are pixels of the photograph turned upright."""
    place = [*face.face.box_4.tolist(), *face.face.landmark_52.ravel().tolist()]
    who = [image, found.photograph.identity, found.photograph.name, face.number, found.shown]
    return [*who, *quality_row(face), *(round(value, 1) for value in place)]


def failure_row(failure: Failure) -> list[str]:
    """The values under `FAILURES`."""
    return [failure.photograph.name, failure.photograph.identity, failure.kind, failure.reason]


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


def align_photographs(
    photographs: Sequence[Photograph],
    out: Path,
    terms: Terms,
    workers: int = 0,
    progress: ProgressFn = no_progress,
) -> Summary:
    """Writes the faces, faces.csv and failures.csv: into `out`, or into its folder where `out` is a .rec.

    The folder is new and whole, or stays absent. Raises UserError: it holds something, no photograph gave a face, or
    what `survey` raises.
    """
    is_record = out.suffix == ".rec"
    if is_record and (out.parent == Path() or (out.parent.is_dir() and any(out.parent.iterdir()))):
        wanted = out.parent / "NEW_FOLDER" / out.name
        raise UserError(f"{out}: its folder exists already, and a .rec gets a new one for all its files; give {wanted}")
    failed, people, faces = [], Counter(), 0
    with atomic_folder(out.parent if is_record else out) as folder:
        output = Record(folder / out.name, photographs) if is_record else Folder(folder, photographs)
        with ExitStack() as stack:
            stack.enter_context(output)
            table, failures = (
                stack.enter_context((folder / name).open("w", encoding="utf-8", newline=""))
                for name in (FACES_FILE, FAILURES_FILE)
            )
            table.write(csv_lines([FACES]))
            failures.write(csv_lines([FAILURES]))
            items = survey(output.photographs, terms, workers)
            for item in track(items, "aligning", len(photographs), progress):
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
