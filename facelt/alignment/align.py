"""Face alignment: the ArcFace template, the similarity transform to it, face quality, aligned crops.

Shapes: 4 a box (left, top, right, bottom), 52 five landmarks (x, y), H height, W width.
"""

from typing import NamedTuple, Protocol

import cv2
import numpy as np

CROP_SIZE = 112
TEMPLATE_52 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Eyes, nose and mouth corners in a crop of 112 x 112 pixels, the left one in the image first."""


def similarity_transform(point_52: np.ndarray, size: int = CROP_SIZE) -> np.ndarray:
    """Returns the least-squares similarity transform [2,3] of landmarks to the template, without reflection.

    Closed form of Umeyama (1991), equations 39 to 42. For another `size` the template is scaled. Raises ValueError if
    the points are not finite or coincide.
    """
    if not np.isfinite(point_52).all() or np.ptp(point_52, axis=0).max() < 1e-3:
        raise ValueError("the landmarks are not finite or coincide")
    centre_2, target_52 = point_52.mean(0), TEMPLATE_52 * (size / CROP_SIZE)
    centred_52, centred_target_52 = point_52 - centre_2, target_52 - target_52.mean(0)
    u_22, value_2, v_22 = np.linalg.svd(centred_target_52.T @ centred_52)
    sign_2 = np.array([1.0, np.sign(np.linalg.det(u_22) * np.linalg.det(v_22))])
    scaled_22 = (value_2 @ sign_2 / (centred_52**2).sum()) * (u_22 * sign_2) @ v_22
    return np.column_stack([scaled_22, target_52.mean(0) - scaled_22 @ centre_2])


def warp_face(
    image_HW3: np.ndarray, matrix_23: np.ndarray, size: int = CROP_SIZE, border: int = cv2.BORDER_CONSTANT
) -> np.ndarray:
    """Returns the square crop [size,size,3], sampled bilinearly as InsightFace does; black outside the photograph."""
    return cv2.warpAffine(image_HW3, matrix_23, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)


_NOSE_DEPTH = 0.4
"""Height of the nose tip above the plane of eyes and mouth, in units of the eye distance: about 25 of 63 mm in adults.
It only affects the scale of yaw and pitch."""
_NOSE, _PLANE = 2, [0, 1, 3, 4]


class Quality(NamedTuple):
    """Face quality: `eye_distance` in pixels of the photograph; `sharpness`, the variance of the Laplacian of the grey
    crop; `yaw`, `pitch` and `roll` in degrees, positive if the nose points to the right of the image, if it points
    down, and if the head leans to the right of the image. 0 is the pose of the template.
    """

    eye_distance: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float


def face_quality(image_HW3: np.ndarray, landmark_52: np.ndarray, matrix_23: np.ndarray) -> Quality:
    """Returns the quality of the face at these landmarks, which `matrix_23` maps to the template."""
    # Replicated border, so that the edge of the photograph does not count as detail.
    grey_HW = cv2.cvtColor(warp_face(image_HW3, matrix_23, border=cv2.BORDER_REPLICATE), cv2.COLOR_RGB2GRAY)
    sharpness = float(cv2.Laplacian(grey_HW, cv2.CV_64F).var())
    return Quality(float(np.linalg.norm(landmark_52[1] - landmark_52[0])), sharpness, *head_pose(landmark_52))


def head_pose(landmark_52: np.ndarray) -> tuple[float, float, float]:
    """Returns yaw, pitch and roll in degrees.

    From a distance, eyes and mouth are an affine image of those of the template, and the nose is displaced from its
    affine position by its height above their plane.
    """
    across, down = landmark_52[1] - landmark_52[0]
    roll = np.arctan2(down, across)
    upright_22 = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    point_52 = landmark_52 @ upright_22.T
    flat_53 = np.column_stack([TEMPLATE_52, np.ones(5)])
    affine_32 = np.linalg.lstsq(flat_53[_PLANE], point_52[_PLANE], rcond=None)[0]
    # A rotation shortens one direction of the plane but not its axis, which gives the scale.
    scale = max(np.linalg.svd(affine_32[:2], compute_uv=False)[0], 1e-9)
    depth = _NOSE_DEPTH * np.linalg.norm(TEMPLATE_52[1] - TEMPLATE_52[0])
    right, below = (point_52[_NOSE] - flat_53[_NOSE] @ affine_32) / (scale * depth)
    yaw = np.arcsin(np.clip(right, -1, 1))
    pitch = np.arcsin(np.clip(below / max(np.cos(yaw), 1e-9), -1, 1))
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


class Face(NamedTuple):
    """Detected face: box, landmarks (eyes, nose, mouth corners, the left one in the image first) and score."""

    box_4: np.ndarray
    landmark_52: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        left, top, right, bottom = self.box_4.tolist()
        return (right - left) * (bottom - top)


class Detector(Protocol):
    """Face detector; `name` identifies it and its weights, `min_score` is the smallest score of a returned face."""

    name: str
    min_score: float

    def detect(self, image_HW3: np.ndarray) -> list[Face]:
        """Returns the faces in an RGB photograph, in any order."""


class AlignedFace(NamedTuple):
    """Face with its 112 x 112 RGB crop and quality; `number` counts the faces of a photograph by size, from 1."""

    number: int
    face: Face
    image_HW3: np.ndarray
    quality: Quality


def align_faces(image_HW3: np.ndarray, detector: Detector) -> list[AlignedFace]:
    """Returns all faces of an RGB photograph, the largest first."""
    aligned = []
    for face in sorted(detector.detect(image_HW3), key=lambda face: -face.area):
        try:
            matrix_23 = similarity_transform(face.landmark_52)
        except ValueError:  # cannot be aligned
            continue
        quality = face_quality(image_HW3, face.landmark_52, matrix_23)
        aligned.append(AlignedFace(len(aligned) + 1, face, warp_face(image_HW3, matrix_23), quality))
    return aligned
