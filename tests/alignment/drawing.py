"""Drawn photographs and a detector that detects exactly the drawn faces."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from facelt.alignment.align import TEMPLATE_52, Face, similarity_transform, warp_face


def turned(degrees: float, scale: float, centre: tuple[float, float]) -> np.ndarray:
    """Returns the template's landmarks [5,2], rotated, scaled and moved to a centre."""
    angle = np.radians(degrees)
    turn_22 = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (TEMPLATE_52 - TEMPLATE_52.mean(0)) @ turn_22.T * scale + centre


def draw(*faces: np.ndarray, height: int = 160, width: int = 200) -> np.ndarray:
    """Draws five squares per face, RGB [H,W,3]; green encodes the landmark, blue the face."""
    down_HW, right_HW = np.mgrid[:height, :width]
    image_HW3 = np.stack([right_HW % 120, down_HW % 120, (right_HW + down_HW) % 120], axis=2).astype(np.uint8)
    for number, point_52 in enumerate(faces):
        for landmark, (x, y) in enumerate(np.rint(point_52).astype(int).tolist()):
            image_HW3[y - 2 : y + 3, x - 2 : x + 3] = (255, 130 + 20 * landmark, 130 + 20 * number)
    return image_HW3


class DrawnFaces:
    """Detects the squares of `draw`; the score is 0.9 for the first face and 0.1 less for each further one."""

    def __init__(self, path: Path, min_score: float = 0.5) -> None:
        self.name, self.min_score = f"drawn:{path}", min_score

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        faces = []
        for number in range(5):
            points = []
            for landmark in range(5):
                pixels = np.argwhere((image_HW3 == (255, 130 + 20 * landmark, 130 + 20 * number)).all(2))
                points += [pixels.mean(0)[::-1]] if len(pixels) else []
            if len(points) == 5 and 0.9 - 0.1 * number >= self.min_score:
                point_52 = np.array(points)
                faces.append(Face(np.concatenate([point_52.min(0), point_52.max(0)]), point_52, 0.9 - 0.1 * number))
        return faces[::-1]


def encode(image_HW3: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Encodes an image with Pillow."""
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, kind, **options)
    return stream.getvalue()


def expected_crop(photo: Path, green: int = 130) -> np.ndarray:
    """Returns the reference crop of the drawn face that has this `green` as blue."""
    image_HW3 = cv2.imread(str(photo))[:, :, ::-1]
    face = next(face for face in DrawnFaces("x").detect(image_HW3) if face.score == 0.9 - 0.1 * (green - 130) / 20)
    return warp_face(image_HW3, similarity_transform(face.landmark_52))
