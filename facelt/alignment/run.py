"""`facelt align`: aligned faces of a set of photographs, as PNG files or a .rec, with tables of faces and failures."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import cv2
import numpy as np

from facelt.alignment.align import CROP_SIZE, AlignedFace
from facelt.alignment.detect import DetectedFaces, DetectionFailure, DetectionOptions, detect_all
from facelt.alignment.photographs import Photograph, require_identity
from facelt.errors import UserError
from facelt.utils.tables import csv_lines
from recordio_tools.atomic_io import atomic_folder
from recordio_tools.face_set import IDENTITIES_FILE, write_identities
from recordio_tools.progress import ProgressFn, no_progress, track
from recordio_tools.writer import FaceRecordWriter

_FORBIDDEN = re.compile(r'[\\/:*?"<>|]')
_MAX_NAME_BYTES = 200  # of a file name; most systems allow 255


class CropFolderWriter:
    """Writes `folder`/.../IDENTITY/NAME.png: the folders of the photographs, the last one named by the identity."""

    def __init__(self, folder: Path, photographs: Sequence[Photograph]) -> None:
        self.photographs = list(photographs)
        self._folder = folder
        self._parents: dict[tuple[str, ...], str] = {}
        self._folders: set[str] = set()
        self._files: set[str] = set()

    def write(self, photograph: Photograph, number: int | None, image_HW3: np.ndarray) -> str:
        path = Path(photograph.name)
        # An identity from a label or a file name is not a folder of the photograph.
        is_folder = path.parent.name == photograph.identity
        parent = self._parent(path.parent.parts if is_folder else (photograph.identity,))
        suffix = "" if number is None else f"_{number}"
        # A folder may hold x.jpg and x.png.
        stems = chain([path.stem, path.name], (f"{path.name}_{copy}" for copy in count(2)))
        names = (str(Path(parent, f"{_file_name(stem)}{suffix}.png")) for stem in stems)
        name = next(name for name in names if name.casefold() not in self._files)
        self._files.add(name.casefold())
        (self._folder / parent).mkdir(parents=True, exist_ok=True)
        (self._folder / name).write_bytes(_png(image_HW3))
        return name

    def __enter__(self) -> "CropFolderWriter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _parent(self, parts: tuple[str, ...]) -> str:
        """Returns the output folder of a folder; folders that differ only in case stay apart."""
        if parts not in self._parents:
            safe = "/".join(_file_name(part) for part in parts if part)
            names = chain([safe], (f"{safe}~{copy}" for copy in count(2)))
            self._parents[parts] = next(name for name in names if name.casefold() not in self._folders)
            self._folders.add(self._parents[parts].casefold())
        return self._parents[parts]


class CropRecordWriter:
    """Writes a .rec, .idx, `property` and identities.csv; the label of a name is its rank among the sorted names.

    People without a face keep their label but have no image. Raises UserError on a photograph without an identity.
    """

    def __init__(self, path: Path, photographs: Sequence[Photograph]) -> None:
        advice = "put the photographs of each person in one folder, use --people file, or write PNG files to a folder"
        require_identity(((item.name, item.identity) for item in photographs), "a .rec", advice)
        names = {item.identity for item in photographs}
        ordered = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
        self._labels = {name: label for label, name in enumerate(ordered)}
        self._images: Counter[str] = Counter()
        self.photographs = sorted(photographs, key=lambda item: self._labels[item.identity])
        self._writer = FaceRecordWriter(path, (CROP_SIZE, CROP_SIZE), len(ordered))

    def write(self, photograph: Photograph, number: int | None, image_HW3: np.ndarray) -> str:
        self._images[photograph.identity] += 1
        return str(self._writer.write(self._labels[photograph.identity], _png(image_HW3)))

    def __enter__(self) -> "CropRecordWriter":
        self._writer.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.__exit__(*error)
        rows = [{"label": label, "name": name, "images": self._images[name]} for name, label in self._labels.items()]
        write_identities(self._writer.path.with_name(IDENTITIES_FILE), rows)


def _file_name(text: str) -> str:
    """Returns the text as a file name without suffix that is valid on any system."""
    short = text.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return _FORBIDDEN.sub("_", short).strip(" .") or "_"


def _png(image_HW3: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR))[1].tobytes()


_LANDMARKS = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
"""Left and right in the image."""
_POSITION_COLUMNS = ("left", "top", "right", "bottom", *(f"{point}_{axis}" for point in _LANDMARKS for axis in "xy"))
QUALITY_COLUMNS = ("score", "eye_distance", "sharpness", "yaw", "pitch", "roll")
FACE_COLUMNS = ("image", "identity", "source", "face", "faces", *QUALITY_COLUMNS, *_POSITION_COLUMNS)
FAILURE_COLUMNS = ("source", "identity", "kind", "reason")


def quality_row(face: AlignedFace) -> list[float]:
    """Returns the values of QUALITY_COLUMNS, rounded to significant digits."""
    return [round(face.face.score, 3), *(round(value, 1) for value in face.quality)]


def face_row(image: str, detected: DetectedFaces, face: AlignedFace) -> list[object]:
    """Returns the values of FACE_COLUMNS; positions are pixels of the upright photograph."""
    position = [*face.face.box_4.tolist(), *face.face.landmark_52.ravel().tolist()]
    photograph = detected.photograph
    names = [image, photograph.identity, photograph.name, face.number, detected.total]
    return [*names, *quality_row(face), *(round(value, 1) for value in position)]


def failure_row(failure: DetectionFailure) -> list[str]:
    """Returns the values of FAILURE_COLUMNS."""
    return [failure.photograph.name, failure.photograph.identity, failure.kind, failure.reason]


FACES_FILE, FAILURES_FILE = "faces.csv", "failures.csv"


@dataclass(frozen=True)
class Summary:
    """Numbers of photographs and faces, failed photographs, and people without any face."""

    photographs: int
    faces: int
    failed: list[DetectionFailure]
    missing: list[str]

    def lines(self) -> list[str]:
        """Returns the summary as lines of text: counts, and failures by kind."""
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
    options: DetectionOptions,
    workers: int = 0,
    progress: ProgressFn = no_progress,
    overwrite: bool = False,
) -> Summary:
    """Writes the faces, faces.csv and failures.csv to the folder `out`, or to the folder of a .rec `out`.

    The folder is written atomically. Raises UserError if it is not empty (without `overwrite`) or holds a photograph,
    if no photograph has a face, and as `detect_all` does.
    """
    is_record = out.suffix == ".rec"
    if is_record and (out.parent == Path() or (out.parent.is_dir() and any(out.parent.iterdir()) and not overwrite)):
        example = out.parent / "NEW_FOLDER" / out.name
        raise UserError(
            f"{out}: its folder exists already; a .rec needs a new folder for its files, such as {example}, "
            "or --overwrite, which replaces the whole folder"
        )
    failed, people, faces = [], Counter(), 0
    sources = {photograph.path.parent for photograph in photographs}
    with atomic_folder(out.parent if is_record else out, overwrite, sorted(sources)) as folder:
        output = (
            CropRecordWriter(folder / out.name, photographs) if is_record else CropFolderWriter(folder, photographs)
        )
        with ExitStack() as stack:
            stack.enter_context(output)
            table, failures = (
                stack.enter_context((folder / name).open("w", encoding="utf-8", newline=""))
                for name in (FACES_FILE, FAILURES_FILE)
            )
            table.write(csv_lines([FACE_COLUMNS]))
            failures.write(csv_lines([FAILURE_COLUMNS]))
            results = detect_all(output.photographs, options, workers)
            for result in track(results, "aligning", len(photographs), progress):
                if isinstance(result, DetectionFailure):
                    failed.append(result)
                    failures.write(csv_lines([failure_row(result)]))
                    continue
                people[result.photograph.identity] += 1
                for face in result.faces:
                    name = output.write(result.photograph, face.number if options.all_faces else None, face.image_HW3)
                    table.write(csv_lines([face_row(name, result, face)]))
                    faces += 1
            if not faces:
                raise no_face_error(failed)
    missing = sorted({item.identity for item in photographs} - set(people) - {""})
    return Summary(len(photographs), faces, failed, missing)


def no_face_error(failed: Sequence[DetectionFailure]) -> UserError:
    """Returns the error for photographs without any face, with the first reasons."""
    first = "; ".join(f"{failure.photograph.name}: {failure.reason}" for failure in failed[:3])
    return UserError(f"none of the {len(failed)} photographs has a usable face: {first}")
