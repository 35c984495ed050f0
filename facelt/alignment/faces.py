"""What detectors find, and what becomes of it.

Shapes: 4 a box (left, top, right, bottom), 52 five points (x, y), H height, W width.
"""

from typing import NamedTuple, Protocol

import numpy as np

from facelt.alignment.quality import Quality, quality_of
from facelt.alignment.template import similarity, warp


class Face(NamedTuple):
    """A face in a photograph: where, its eyes, nose and corners of the mouth (left of the picture first), how sure."""

    box_4: np.ndarray
    landmark_52: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        left, top, right, bottom = self.box_4.tolist()
        return (right - left) * (bottom - top)


class Detector(Protocol):
    """Finds faces. `name` says which and with what weights; `min_score` is the least score of what it returns."""

    name: str
    min_score: float

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        """The faces in an RGB photograph, in any order."""


class AlignedFace(NamedTuple):
    """A face, its 112 x 112 picture in RGB and its quality; `number` counts the photograph's faces by size from 1."""

    number: int
    face: Face
    image_HW3: np.ndarray
    quality: Quality


def align_faces(image_HW3: np.ndarray, detector: Detector) -> list[AlignedFace]:
    """Every face of an RGB photograph, the largest first."""
    aligned = []
    for face in sorted(detector.detect(image_HW3), key=lambda face: -face.area):
        try:
            matrix_23 = similarity(face.landmark_52)
        except ValueError:  # no face that anybody could align
            continue
        quality = quality_of(image_HW3, face.landmark_52, matrix_23)
        aligned.append(AlignedFace(len(aligned) + 1, face, warp(image_HW3, matrix_23), quality))
    return aligned
