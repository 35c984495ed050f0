"""A supersampled canvas that takes curves in space and paints them as the camera sees them."""

import cv2
import numpy as np

from facelt.data.synthetic.nuisance import Nuisance

SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of cv2's coordinates
CENTRE = np.array([56.0, 60.0])  # the head's centre in a 112-pixel crop
_ANCHOR = np.array([[0.0, 6.0, 26.0]])  # the point that alignment holds in place


class Pose:
    """Space to picture: out-of-plane turns by the points' depth, then turn, scale and shift in the plane."""

    def __init__(self, how: Nuisance):
        cos_yaw, sin_yaw, cos_pitch, sin_pitch = np.cos(how.yaw), np.sin(how.yaw), np.cos(how.pitch), np.sin(how.pitch)
        turn = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
        nod = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
        roll = np.array([[np.cos(how.roll), -np.sin(how.roll)], [np.sin(how.roll), np.cos(how.roll)]])
        self.matrix = how.scale * roll @ (nod @ turn)[:2]
        # A crop is aligned on eyes, nose and mouth: a turned head stays centred but for the aligner's error.
        moved = _ANCHOR @ self.matrix.T - _ANCHOR[:, :2]
        self.offset = CENTRE + how.shift - 0.85 * moved[0]

    def project(self, point_n3: np.ndarray) -> np.ndarray:
        """Points [..., 3] to picture coordinates [..., 2] in a 112-pixel crop."""
        return point_n3 @ self.matrix.T + self.offset


class Canvas:
    """Paints polygons, lines and dots, anti-aliased, at SUPERSAMPLING times the picture's size."""

    def __init__(self, size: int, pose: Pose, backdrop: np.ndarray):
        side = size * SUPERSAMPLING
        down = np.linspace(0.0, 1.0, side)[:, None]
        column = np.clip((1 - down) * backdrop[0] + down * backdrop[1], 0, 255).astype(np.uint8)
        self.pixels = cv2.repeat(column[:, None, :], 1, side)
        self.factor = side / 112.0
        self.pose = pose

    def fixed(self, point_n3: np.ndarray) -> np.ndarray:
        """Projected points as cv2's fixed-point integers."""
        flat = point_n3 if point_n3.shape[-1] == 2 else self.pose.project(point_n3)
        return np.rint(flat * (self.factor * (1 << _SHIFT))).astype(np.int32)

    def fill(self, point_n3: np.ndarray, colour: np.ndarray) -> None:
        """A filled polygon."""
        cv2.fillPoly(self.pixels, [self.fixed(point_n3)], _tuple(colour), cv2.LINE_AA, _SHIFT)

    def line(self, point_n3: np.ndarray, colour: np.ndarray, width: float) -> None:
        """An open line, `width` pixels of the 112-pixel crop wide, at least one of the canvas."""
        thickness = max(1, round(width * self.factor))
        cv2.polylines(self.pixels, [self.fixed(point_n3)], False, _tuple(colour), thickness, cv2.LINE_AA, _SHIFT)

    def dots(self, point_n3: np.ndarray, radius_n: np.ndarray, colour: np.ndarray) -> None:
        """Filled circles."""
        radii = np.rint(radius_n * (self.factor * (1 << _SHIFT))).astype(int).tolist()
        for (x, y), radius in zip(self.fixed(point_n3).tolist(), radii, strict=True):
            cv2.circle(self.pixels, (x, y), radius, _tuple(colour), -1, cv2.LINE_AA, _SHIFT)

    def small(self, size: int) -> np.ndarray:
        """The picture at its own size: float32 RGB [size, size, 3], 0..255."""
        return cv2.resize(self.pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)


def mask(size: int, pose: Pose, shapes: list[tuple[np.ndarray, int]], blur: float) -> np.ndarray:
    """Polygons (points, strength 0..255) on black, blurred by `blur` pixels of the crop: float32 [size, size], 0..1."""
    layer, factor = np.zeros((size, size), np.uint8), size / 112.0
    for points, strength in shapes:
        fixed = np.rint(pose.project(points) * (factor * (1 << _SHIFT))).astype(np.int32)
        cv2.fillPoly(layer, [fixed], strength, cv2.LINE_AA, _SHIFT)
    return cv2.GaussianBlur(layer, (0, 0), blur * factor).astype(np.float32) / 255.0


def _tuple(colour: np.ndarray) -> tuple[float, float, float]:
    return tuple(colour.tolist())  # cv2 saturates
