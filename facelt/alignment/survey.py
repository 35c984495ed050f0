"""Many photographs, one after the other: their faces, or why there are none."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import NamedTuple

from facelt.alignment import open_detector
from facelt.alignment.faces import AlignedFace, Detector, align_faces
from facelt.alignment.photographs import Photograph, read_photograph
from facelt.data.decode import UndecodableImage, prepare_opencv
from facelt.errors import UserError

CHUNK = 4  # photographs a worker takes at a time


@dataclass(frozen=True)
class Terms:
    """What counts as a face: which detector (`KIND:PATH`), its least score or None, all faces or the largest, and how
    many pixels a photograph may have."""

    detector: str
    min_score: float | None = None
    every: bool = False
    max_pixels: int = 50_000_000


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
    except UndecodableImage as error:
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
