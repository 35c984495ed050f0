"""ArcFace's template and the similarity transform that brings five landmarks onto it.

Shapes: 52 five points (x, y), H height, W width.
"""

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
