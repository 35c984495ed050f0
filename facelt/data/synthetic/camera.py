"""From a painted face to a photograph: skin texture, soft shade, light, colour response, blur and sensor noise."""

from functools import lru_cache

import cv2
import numpy as np

from facelt.data.synthetic.canvas import CENTRE, Pose
from facelt.data.synthetic.identity import FIELD_SIDE, IdentityParameters
from facelt.data.synthetic.nuisance import Nuisance
from facelt.data.synthetic.streams import Purpose, stream

TEXTURE = 0.16  # strongest change of the skin's brightness by its own texture
_LUMA = np.array([[0.299, 0.587, 0.114]])


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The direction in which each pixel's surface looks: side, height and depth, each [size, size], of unit length."""
    at = (np.arange(size, dtype=np.float32) + 0.5) * (112.0 / size)
    side = ((at[None, :] - CENTRE[0]) / 46.0) * np.ones((size, 1), np.float32)
    height = ((at[:, None] - CENTRE[1]) / 56.0) * np.ones((1, size), np.float32)
    # A bump that never ends, not a ball: what lies behind the head shows no rim of light.
    depth = 1.0 / np.sqrt(1.0 + side**2 + height**2)
    return side * depth, height * depth, depth


def skin_texture(who: IdentityParameters, pose: Pose, size: int) -> np.ndarray:
    """The person's own blotches as the turned head shows them: float32 [size, size], about -1..1."""
    step = 92.0 / (FIELD_SIDE - 1)
    start = -46.0
    # The field lies on a plane at the cheeks' depth, so that it moves with the features above it.
    plane = pose.matrix @ np.array([[step, 0.0, start], [0.0, step, start], [0.0, 0.0, 20.0]])
    plane[:, 2] += pose.offset
    plane *= size / 112.0
    return cv2.warpAffine(who.skin_field, plane, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def light(how: Nuisance, size: int) -> np.ndarray:
    """Light from one side on a round head, times the gain: [size, size]. Lambert's cosine plus ambient light."""
    side, height, depth = _grid(size)
    across, up = how.light
    forward = 1.0 / np.sqrt(1.0 + across**2 + up**2)
    cosine = np.float32(across * forward) * side + np.float32(up * forward) * height + np.float32(forward) * depth
    return np.float32(0.52 * how.gain) + np.float32(0.60 * how.gain) * np.maximum(cosine, np.float32(-0.3))


def expose(picture_HWC: np.ndarray, how: Nuisance) -> np.ndarray:
    """Colour cast, saturation, blur, the sensor's noise and gamma: uint8 RGB."""
    grey = how.saturation * np.eye(3) + (1.0 - how.saturation) * np.repeat(_LUMA, 3, axis=0)
    picture = cv2.transform(picture_HWC, (grey * how.cast).astype(np.float32))
    if how.blur > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), how.blur * picture.shape[0] / 112.0)
    if how.noise > 0.0:
        rng = stream(how.pixel_seed[0], Purpose.PIXELS, *how.pixel_seed[1:])
        picture += np.float32(how.noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    levels = cv2.convertScaleAbs(np.maximum(picture, 0.0, out=picture))  # rounds and saturates
    return cv2.LUT(levels, _gamma_table(how.gamma))


def _gamma_table(gamma: float) -> np.ndarray:
    return np.rint(255.0 * (np.arange(256) / 255.0) ** gamma).astype(np.uint8)
