"""What changes between two pictures of the same person: pose, light, expression, occlusion and the camera."""

from dataclasses import dataclass

import numpy as np

from facelt.data.synthetic.difficulty import DEMO, Difficulty
from facelt.data.synthetic.streams import Purpose, stream


@dataclass(frozen=True, eq=False)
class Nuisance:
    """One picture's circumstances. Angles are radians, lengths pixels of a 112-pixel crop, colours RGB in 0..255."""

    yaw: float
    pitch: float
    roll: float
    shift: tuple[float, float]
    scale: float
    light: tuple[float, float]  # side and height of the light; 0 is the camera's
    gain: float
    gamma: float
    cast: np.ndarray  # [3], factor of each channel
    saturation: float  # 0 is a grey image
    smile: float  # -1 .. 1
    mouth_open: float  # 0 .. 1
    brow_raise: float  # -1 .. 1
    eyes_closed: float  # 0 .. 1
    gaze: tuple[float, float]
    occlusion: str  # "", "glasses", "sunglasses", "bar" or "hand"
    occlusion_place: tuple[float, float, float]  # x, y in 0..1, turn in 0..1
    occlusion_colour: np.ndarray
    backdrop: np.ndarray  # [2, 3], colours at the top and at the bottom
    clothes: np.ndarray
    blur: float
    noise: float
    pixel_seed: tuple[int, int, int]  # names the stream of the sensor's noise
    jpeg_quality: int


def draw_nuisance(seed: int, identity_index: int, image_index: int, difficulty: Difficulty = DEMO) -> Nuisance:
    """The circumstances of picture `image_index` of a person: the same every time, whatever else is drawn."""
    rng = stream(seed, Purpose.NUISANCE, identity_index, image_index)
    turn, light = _bounded(rng, 3), _bounded(rng, 4)
    face = _bounded(rng, 3) * difficulty.expression
    shift, cast, gaze = _bounded(rng, 2) * difficulty.shift, _bounded(rng, 3) * difficulty.colour_cast, _bounded(rng, 2)
    return Nuisance(
        yaw=np.deg2rad(difficulty.yaw) * turn[0],
        pitch=np.deg2rad(difficulty.pitch) * turn[1],
        roll=np.deg2rad(difficulty.roll) * turn[2],
        shift=(float(shift[0]), float(shift[1])),
        scale=float(np.exp(difficulty.scale * _bounded(rng, 1)[0])),
        light=(float(difficulty.side_light * light[0]), float(difficulty.side_light * 0.6 * light[1])),
        gain=float(np.exp(difficulty.gain * light[2])),
        gamma=float(np.exp(difficulty.gamma * light[3])),
        cast=np.exp(cast - cast.mean()),
        saturation=0.0
        if rng.random() < difficulty.grey_share
        else float(np.exp(difficulty.saturation * _bounded(rng, 1)[0])),
        smile=float(np.clip(0.15 * difficulty.expression + 0.5 * face[0], -1, 1)),
        mouth_open=float(np.clip(0.6 * face[1] - 0.25, 0, 1)),
        brow_raise=float(np.clip(0.5 * face[2], -1, 1)),
        eyes_closed=float(rng.random() ** 4 * min(difficulty.expression, 1.0)),
        gaze=(float(0.5 * difficulty.expression * gaze[0]), float(0.3 * difficulty.expression * gaze[1])),
        occlusion=_occlusion(rng, difficulty),
        occlusion_place=tuple(float(value) for value in rng.random(3)),
        occlusion_colour=rng.uniform(15, 235, 3),
        backdrop=rng.uniform(30, 215) + rng.uniform(-38, 38, 3) + rng.uniform(-25, 25, (2, 3)),
        clothes=rng.uniform(30, 205) + rng.uniform(-50, 50, 3),
        blur=float(difficulty.blur * rng.random() ** 2),
        noise=float(difficulty.noise * min(rng.exponential(), 2.5)),
        pixel_seed=(int(seed), int(identity_index), int(image_index)),
        jpeg_quality=int(rng.integers(difficulty.jpeg_lowest, 96)),
    )


def _bounded(rng: np.random.Generator, count: int) -> np.ndarray:
    """Normal numbers cut at two and a half spreads: no picture is beyond what the drawing can show."""
    return np.clip(rng.standard_normal(count), -2.5, 2.5)


def _occlusion(rng: np.random.Generator, difficulty: Difficulty) -> str:
    at, below = rng.random(), 0.0
    for name in ("glasses", "sunglasses", "bar", "hand"):
        below += getattr(difficulty, f"{name}_share")
        if at < below:
            return name
    return ""
