"""ArcFace's template and the similarity transform that brings five landmarks onto it.

Shapes: 52 five points (x, y), H height, W width.

How good a picture of a face is, from its five landmarks and its aligned pixels.

Shapes: 52 five points (x, y), H height, W width.

What detectors find, and what becomes of it.

Shapes: 4 a box (left, top, right, bottom), 52 five points (x, y), H height, W width.
"""

from typing import NamedTuple, Protocol

import cv2
import numpy as np

SIZE = 112
TEMPLATE_52 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Eyes, nose and corners of the mouth in a picture of 112 x 112 pixels, left as one looks at it first."""


def similarity(point_52: np.ndarray, size: int = SIZE) -> np.ndarray:
    """[2,3]: rotation, scale and shift, never a reflection, that leave the least squared distance to the template.

    The closed form of Umeyama (1991), equations 39 to 42. A square of another `size` has the template scaled. Raises
    ValueError where the points are not finite or all in one place.
    """
    if not np.isfinite(point_52).all() or np.ptp(point_52, axis=0).max() < 1e-3:
        raise ValueError("the landmarks lie in one place or nowhere")
    centre_2, target_52 = point_52.mean(0), TEMPLATE_52 * (size / SIZE)
    apart_52, wanted_52 = point_52 - centre_2, target_52 - target_52.mean(0)
    u_22, value_2, v_22 = np.linalg.svd(wanted_52.T @ apart_52)
    sign_2 = np.array([1.0, np.sign(np.linalg.det(u_22) * np.linalg.det(v_22))])
    scaled_22 = (value_2 @ sign_2 / (apart_52**2).sum()) * (u_22 * sign_2) @ v_22
    return np.column_stack([scaled_22, target_52.mean(0) - scaled_22 @ centre_2])


def warp(
    image_HW3: np.ndarray, matrix_23: np.ndarray, size: int = SIZE, border: int = cv2.BORDER_CONSTANT
) -> np.ndarray:
    """The square picture [size,size,3], sampled linearly as InsightFace does; black outside of the photograph."""
    return cv2.warpAffine(image_HW3, matrix_23, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)


NOSE_DEPTH = 0.4
"""How far the tip of the nose stands out of the plane of eyes and mouth, in distances between the eyes: about 25 mm of
63 in adults. Only the scale of yaw and pitch hangs on it."""
NOSE, PLANE = 2, [0, 1, 3, 4]


class Quality(NamedTuple):
    """`eye_distance` in pixels of the photograph; `sharpness`, the variance of the Laplacian of the aligned picture in
    grey; `yaw`, `pitch` and `roll` in degrees: positive where the nose points to the picture's right, where it points
    down, and where the head leans to the picture's right. 0 is the pose of the template.
    """

    eye_distance: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float


def quality_of(image_HW3: np.ndarray, landmark_52: np.ndarray, matrix_23: np.ndarray) -> Quality:
    """The quality of the face at these landmarks, which `matrix_23` takes to the template."""
    # What lies outside of the photograph is continued, so that its edge is not taken for detail.
    grey_HW = cv2.cvtColor(warp(image_HW3, matrix_23, border=cv2.BORDER_REPLICATE), cv2.COLOR_RGB2GRAY)
    sharpness = float(cv2.Laplacian(grey_HW, cv2.CV_64F).var())
    return Quality(float(np.linalg.norm(landmark_52[1] - landmark_52[0])), sharpness, *pose_of(landmark_52))


def pose_of(landmark_52: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees.

    Seen from afar, the flat part of the face (eyes and mouth) is an affine picture of the template's, and the nose lies
    where that puts it plus its depth's share of the line of sight.
    """
    across, down = landmark_52[1] - landmark_52[0]
    roll = np.arctan2(down, across)
    upright_22 = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    point_52 = landmark_52 @ upright_22.T
    flat_53 = np.column_stack([TEMPLATE_52, np.ones(5)])
    affine_32 = np.linalg.lstsq(flat_53[PLANE], point_52[PLANE], rcond=None)[0]
    # Turning shortens one direction of the plane and leaves the one it turns about: that one tells the scale.
    scale = max(np.linalg.svd(affine_32[:2], compute_uv=False)[0], 1e-9)
    depth = NOSE_DEPTH * np.linalg.norm(TEMPLATE_52[1] - TEMPLATE_52[0])
    right, below = (point_52[NOSE] - flat_53[NOSE] @ affine_32) / (scale * depth)
    yaw = np.arcsin(np.clip(right, -1, 1))
    pitch = np.arcsin(np.clip(below / max(np.cos(yaw), 1e-9), -1, 1))
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


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
