"""Photographs to embed: aligned on the way, nothing is left of them but the store.

Shapes: N faces, 52 five points (x, y), H height, W width.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facelt.alignment import open_detector
from facelt.alignment.photographs import Photograph, read_photograph
from facelt.alignment.run import no_face, shown
from facelt.alignment.survey import Failure, Terms, survey
from facelt.alignment.tables import QUALITY, quality_row
from facelt.alignment.template import similarity, warp
from facelt.data.image_dataset import ImageDataset
from facelt.data.transforms import ExpectSize
from facelt.engine.images import ImageSource
from facelt.errors import UserError


class AlignedFaces(ImageDataset):
    """Faces whose landmarks are known, cut out of their photographs whenever they are asked for.

    So a photograph is decoded once more than to find its faces, at most 7 hundredths of the time YuNet takes for that
    (12 million pixels); to keep the faces would take 38 KB of memory or disk for each.
    """

    def __init__(self, names: list[str], places: list[Path], landmark_N52: np.ndarray, side: int, max_pixels: int):
        super().__init__(np.full(len(names), -1), 0, ExpectSize((side, side)))
        self._names, self._places, self._landmark_N52 = names, places, landmark_N52
        self._side, self._max_pixels = side, max_pixels
        self._last: tuple[Path, np.ndarray] | None = None

    def names(self, index: int) -> str:
        return self._names[index]

    def pixels(self, index: int) -> np.ndarray:
        place = self._places[index]
        # The faces of a photograph follow one another.
        if self._last is None or self._last[0] != place:
            self._last = place, read_photograph(place, self._max_pixels)
        return warp(self._last[1], similarity(self._landmark_N52[index], self._side), self._side)


def open_photographs(
    photographs: Sequence[Photograph], terms: Terms, image_size: tuple[int, int], workers: int
) -> tuple[ImageSource, list[Failure]]:
    """The faces of the photographs, of the size a model expects, and those photographs that gave none.

    A face's key is its photograph's name, with `#` and its number where all faces are taken. Everything is looked at
    once, here. Raises UserError: a photograph that is listed twice, no face at all, a model of images that
    are no squares, or what `survey` raises.
    """
    height, width = image_size
    if height != width:
        raise UserError(f"--align: the model's images are {height} x {width} pixels, and aligned faces are squares")
    name, times = Counter(photograph.name for photograph in photographs).most_common(1)[0]
    if times > 1:
        raise UserError(f"the photograph {name} is listed {times} times; name each once")
    failed, shows, keys, landmarks, rows = [], [], [], [], []
    for item in shown(survey(photographs, terms, workers), len(photographs)):
        if isinstance(item, Failure):
            failed.append(item)
            continue
        # Their pixels are let go: the photographs of a large set would not fit in memory as faces either.
        for face in item.faces:
            shows.append(item.photograph)
            keys.append(item.photograph.name + (f"#{face.number}" if terms.every else ""))
            landmarks.append(face.face.landmark_52)
            rows.append([item.photograph.name, *map(str, quality_row(face))])
    if not keys:
        raise no_face(failed)
    places = [photograph.place for photograph in shows]
    alignment = {"detector": open_detector(terms.detector, terms.min_score).name, "template": "arcface"}
    return ImageSource(
        AlignedFaces(keys, places, np.stack(landmarks), height, terms.max_pixels),
        np.arange(len(keys)),
        keys,
        [photograph.identity for photograph in shows],
        dict(zip(("source", *QUALITY), map(list, zip(*rows, strict=True)), strict=True)),
        {"alignment": alignment},
    ), failed
