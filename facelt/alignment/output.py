"""Where aligned faces go: PNG files in folders by identity, or a .rec in InsightFace's layout."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import chain, count
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from facelt.alignment.photographs import Photograph, refuse_nameless
from facelt.alignment.template import SIZE
from recordio_tools.face_writer import FaceRecordWriter
from recordio_tools.identity_table import NAME

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
        with self._writer.path.with_name(NAME).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["label", "name", "images"])
            table.writerows([label, name, self._images[name]] for name, label in self._labels.items())


def _file_name(text: str) -> str:
    """The text as a file's name on any system, without its suffix."""
    short = text.encode()[:LONGEST].decode(errors="ignore")
    return _FORBIDDEN.sub("_", short).strip(" .") or "_"


def _png(image_HW3: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR))[1].tobytes()
