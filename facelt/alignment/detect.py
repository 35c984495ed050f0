"""Face detection in many photographs, in this process or in worker processes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import NamedTuple

from facelt.alignment.align import AlignedFace, Detector, align_faces
from facelt.alignment.detectors import open_detector
from facelt.alignment.photographs import Photograph, read_photograph
from facelt.data.decode import BadImageError, prepare_opencv
from facelt.errors import UserError
from recordio_tools.image_header import DEFAULT_MAX_PIXELS

_PHOTOGRAPHS_PER_TASK = 4


@dataclass(frozen=True)
class DetectionOptions:
    """Detector (`KIND:PATH`), smallest score (None: the detector's default), all faces or the largest, pixel limit."""

    detector: str
    min_score: float | None = None
    all_faces: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS


class DetectionFailure(NamedTuple):
    """Photograph without a usable face; `kind` is `no face` or `unusable`."""

    photograph: Photograph
    kind: str
    reason: str


class DetectedFaces(NamedTuple):
    """Selected faces of a photograph, and the number of faces in it."""

    photograph: Photograph
    faces: list[AlignedFace]
    total: int


_detector: Detector
"""Detector of a worker process."""


def detect_all(
    photographs: Sequence[Photograph], options: DetectionOptions, workers: int = 0
) -> Iterator[DetectedFaces | DetectionFailure]:
    """Yields the result of each photograph, in order, from `workers` processes (0: this process).

    Raises UserError if the detector cannot be opened or a worker was killed.
    """
    if not workers:
        prepare_opencv()
        yield from map(partial(detect_faces, open_detector(options.detector, options.min_score), options), photographs)
        return
    open_detector(options.detector, options.min_score)  # reports its errors once, here
    with ProcessPoolExecutor(workers, get_context("spawn"), _init_worker, (options,)) as pool:
        try:
            yield from pool.map(partial(_detect_in_worker, options), photographs, chunksize=_PHOTOGRAPHS_PER_TASK)
        except BrokenProcessPool:
            raise UserError("an alignment worker was killed; use fewer --workers or more memory") from None


def detect_faces(
    detector: Detector, options: DetectionOptions, photograph: Photograph
) -> DetectedFaces | DetectionFailure:
    """Returns the faces of one photograph, or why there are none."""
    try:
        faces = align_faces(read_photograph(photograph.path, options.max_pixels), detector)
    except BadImageError as error:
        return DetectionFailure(photograph, "unusable", str(error))
    if not faces:
        return DetectionFailure(photograph, "no face", f"no face with a score of {detector.min_score:g} or more")
    return DetectedFaces(photograph, faces if options.all_faces else faces[:1], len(faces))


def _init_worker(options: DetectionOptions) -> None:
    global _detector
    Thread(target=_exit_with_parent, daemon=True).start()
    prepare_opencv()
    _detector = open_detector(options.detector, options.min_score)


def _exit_with_parent() -> None:
    # A killed parent does not close the pool; its workers would wait forever.
    parent_process().join()
    os._exit(1)


def _detect_in_worker(options: DetectionOptions, photograph: Photograph) -> DetectedFaces | DetectionFailure:
    return detect_faces(_detector, options, photograph)
