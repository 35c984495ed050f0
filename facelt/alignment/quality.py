"""How good a picture of a face is, from its five landmarks and its aligned pixels.

Shapes: 52 five points (x, y), H height, W width.
"""

from typing import NamedTuple

import cv2
import numpy as np

from facelt.alignment.template import TEMPLATE_52, warp

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
