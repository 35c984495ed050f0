"""Identities and nuisance factors of synthetic faces, drawn from a seed.

An identity (shape, colour, texture) depends on (seed, identity) alone, the nuisance of a picture (pose, light,
expression, occlusion, camera) on (seed, identity, image) and the difficulty.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from facelt.errors import UserError


@dataclass(frozen=True)
class Difficulty:
    """Spread of every nuisance factor; the spread of identities is fixed, so these values alone set the difficulty.

    They are chosen for the demo: rank-1 between 50% and 95% against about a thousand distractors after one or two
    minutes of training a small network, and identity visible in shape and texture, not in mean colour, which backdrop,
    clothes and light change more than faces differ in it. Measured with 400 training identities and 12,000 pictures at
    half size, a narrow nine-layer residual network reached rank-1 of 67% against 1,000 distractors (48% with spreads
    about a third larger), nearest neighbours of 8x8 thumbnails 6%. Larger spreads, or more covered and grey images,
    make the task harder. Angles are in degrees, lengths in pixels of a 112-pixel crop, shares in [0, 1]; a spread is a
    standard deviation unless its comment says otherwise.
    """

    # pose
    yaw: float = 5.5
    pitch: float = 2.5
    roll: float = 1.5
    shift: float = 0.6
    scale: float = 0.012
    # light
    side_light: float = 0.22  # deviation of the light's direction from the camera's
    gain: float = 0.06  # of the logarithm
    gamma: float = 0.06  # of the logarithm
    colour_cast: float = 0.03  # of each channel's logarithm
    saturation: float = 0.08  # of the logarithm
    grey_share: float = 0.015  # images without colour
    # expression, as a part of the full movement
    expression: float = 0.4
    # occlusion: share of images that each covers
    glasses_share: float = 0.04
    sunglasses_share: float = 0.01
    bar_share: float = 0.02
    hand_share: float = 0.02
    # camera
    blur: float = 0.7  # largest Gaussian sigma in pixels; most pictures are far below
    noise: float = 2.0  # grey levels, about the mean; most pictures are below
    jpeg_lowest: int = 65  # quality, uniform from here to 95

    def scaled(self, factor: float) -> "Difficulty":
        """Returns every spread and share multiplied by `factor` (0: a studio portrait); shares stay below 1/5."""
        if not 0.0 <= factor <= 4.0:
            raise UserError(f"synthetic faces: the factor of a difficulty must be in 0..4, not {factor!r}")
        values = {name: value * factor for name, value in vars(self).items() if name != "jpeg_lowest"}
        values |= {name: min(value, 0.2) for name, value in values.items() if name.endswith("_share")}
        return replace(self, jpeg_lowest=round(95 - (95 - self.jpeg_lowest) * min(factor, 2.0)), **values)


DEMO = Difficulty()


class StreamId(IntEnum):
    """Independent random streams: a change in the draws of one does not affect the others."""

    IDENTITY = 1
    NUISANCE = 2
    PIXELS = 3
    COUNTS = 4
    SUITE = 5


def random_stream(seed: int, purpose: StreamId, *indices: int) -> np.random.Generator:
    """Returns the random generator of one stream for the given indices (an identity, an image of it).

    Raises UserError if the seed or an index is not a whole number of at least 0.
    """
    for name, value in [("seed", seed), *(("index", index) for index in indices)]:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise UserError(f"synthetic faces: {name} must be a whole number of at least 0, not {value!r}")
    # The length distinguishes (seed, a) from (seed, a, 0): SeedSequence ignores trailing zeros.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, len(indices), *indices, 1])))


GENDERS = ("female", "male")
SKIN_FIELD_SIDE = 9  # cells per side of the coarse skin texture
HAIR_STYLES = ("swept", "fringe", "parted", "receding", "shaved")


@dataclass(frozen=True, eq=False)
class IdentityParameters:
    """Parameters of a synthetic person. Lengths are pixels of a 112-pixel crop, colours RGB in 0..255, angles radians.

    `gender` is a label of the drawing, not a claim about people: it shifts the means of hair length, jaw width, brow
    thickness, beard and lip colour, and the two groups overlap in each of them.
    """

    gender: str
    # outline
    cheek_width: float
    jaw_width: float
    jaw_square: float
    chin: float
    forehead: float
    ear_size: float
    # eyes and brows
    eye_distance: float
    eye_height: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    lid_fold: float
    brow_gap: float
    brow_thickness: float
    brow_length: float
    brow_arch: float
    brow_tilt: float
    # nose and mouth
    nose_length: float
    nose_width: float
    nose_bridge: float
    mouth_height: float
    mouth_width: float
    lip_upper: float
    lip_lower: float
    lip_bow: float
    # colour
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    # texture and hair
    skin_field: np.ndarray  # [FIELD_SIDE, FIELD_SIDE], about -1..1
    freckles: np.ndarray  # [n, 3]: x, y, radius on the unit face
    moles: np.ndarray  # [n, 3]
    age_lines: float
    beard: float
    hair_style: str
    hair_length: float  # 0 cropped .. 1 shoulder
    hair_volume: float
    hair_line: float
    hair_parting: float
    hair_wave: float
    hair_phase: float


def draw_identity(seed: int, index: int) -> IdentityParameters:
    """Returns person number `index` of a seed, independent of every other index."""
    rng = random_stream(seed, StreamId.IDENTITY, index)
    is_male = bool(rng.random() < 0.5)
    side = 1.0 if is_male else -1.0
    skin, hair, iris, lips = _colours(rng, side)
    return IdentityParameters(
        gender=GENDERS[is_male],
        skin=skin,
        hair=hair,
        iris=iris,
        lips=lips,
        **_outline(rng, side),
        **_eyes(rng, side),
        **_nose_and_mouth(rng, side),
        **_texture(rng, side),
        **_hair(rng, side),
    )


def _clipped_normal(rng: np.random.Generator, mean: float, spread: float) -> float:
    """A normal variate clipped at two standard deviations, so that every face can be drawn."""
    return float(mean + spread * np.clip(rng.standard_normal(), -2.0, 2.0))


def _outline(rng: np.random.Generator, side: float) -> dict:
    return {
        "cheek_width": _clipped_normal(rng, 36.5, 2.8),
        "jaw_width": _clipped_normal(rng, 0.68 + 0.06 * side, 0.085),
        "jaw_square": _clipped_normal(rng, 0.80 - 0.07 * side, 0.14),
        "chin": _clipped_normal(rng, 43.0 + 1.0 * side, 3.2),
        "forehead": _clipped_normal(rng, 43.0, 2.5),
        "ear_size": _clipped_normal(rng, 8.5, 2.2),
    }


def _eyes(rng: np.random.Generator, side: float) -> dict:
    return {
        "eye_distance": _clipped_normal(rng, 16.8, 1.8),
        "eye_height": _clipped_normal(rng, -8.5, 2.0),
        "eye_width": _clipped_normal(rng, 7.4, 1.15),
        "eye_open": _clipped_normal(rng, 3.5 - 0.2 * side, 0.85),
        "eye_tilt": _clipped_normal(rng, 0.03, 0.15),
        "lid_fold": _clipped_normal(rng, 0.5, 0.3),
        "brow_gap": _clipped_normal(rng, 8.2 - 0.8 * side, 1.8),
        "brow_thickness": max(0.7, _clipped_normal(rng, 2.3 + 0.55 * side, 0.85)),
        "brow_length": _clipped_normal(rng, 10.0, 1.5),
        "brow_arch": _clipped_normal(rng, 2.2 - 0.5 * side, 1.7),
        "brow_tilt": _clipped_normal(rng, 0.0, 0.17),
    }


def _nose_and_mouth(rng: np.random.Generator, side: float) -> dict:
    return {
        "nose_length": _clipped_normal(rng, 18.5, 2.9),
        "nose_width": _clipped_normal(rng, 7.0 + 0.4 * side, 1.7),
        "nose_bridge": _clipped_normal(rng, 2.6, 0.9),
        "mouth_height": _clipped_normal(rng, 23.5, 2.1),
        "mouth_width": _clipped_normal(rng, 12.0 + 0.4 * side, 2.2),
        "lip_upper": max(0.6, _clipped_normal(rng, 2.4 - 0.3 * side, 0.95)),
        "lip_lower": max(0.8, _clipped_normal(rng, 3.3 - 0.3 * side, 1.2)),
        "lip_bow": _clipped_normal(rng, 0.9, 0.5),
    }


def _colours(rng: np.random.Generator, side: float) -> tuple[np.ndarray, ...]:
    """Skin from dark to light, hair from black to grey and blond, iris from brown to blue, lips a redder skin."""
    depth, warmth = rng.beta(1.6, 1.2), rng.normal(0.0, 5.0)
    skin = (1 - depth) * np.array([112, 72, 52.0]) + depth * np.array([236, 196, 172.0]) + [warmth, 0, -warmth]
    tones = np.array([[28, 24, 24], [62, 42, 30], [104, 70, 44], [168, 130, 82], [142, 66, 36], [150, 148, 146.0]])
    tone = rng.choice(6, p=[0.3, 0.26, 0.18, 0.12, 0.06, 0.08])
    hair = tones[tone] * np.exp(rng.normal(0.0, 0.14)) + rng.normal(0.0, 4.0, 3)
    irises = np.array([[62, 38, 22], [96, 66, 36], [88, 110, 70], [80, 118, 150], [110, 122, 128.0]])
    iris = irises[rng.choice(5, p=[0.42, 0.22, 0.12, 0.16, 0.08])] * np.exp(rng.normal(0.0, 0.12))
    redness = np.clip(0.40 - 0.14 * side + rng.normal(0.0, 0.16), 0.05, 0.9)
    lips = (1 - redness) * skin * [0.92, 0.74, 0.74] + redness * np.array([172, 52, 62.0])
    return tuple(np.clip(colour, 8, 247) for colour in (skin, hair, iris, lips))


def _texture(rng: np.random.Generator, side: float) -> dict:
    has_freckles = rng.random() < 0.3
    return {
        "skin_field": np.clip(rng.standard_normal((SKIN_FIELD_SIDE, SKIN_FIELD_SIDE)), -2.0, 2.0).astype(np.float32)
        / 2.0,
        "freckles": _spots(rng, int(rng.integers(25, 70)) if has_freckles else 0, 0.5, 0.9, (-0.35, 0.45)),
        "moles": _spots(rng, int(rng.integers(0, 4)), 0.9, 1.6, (-0.75, 0.8)),
        "age_lines": float(rng.beta(1.2, 2.5)),
        "beard": float(rng.uniform(0.15, 0.9)) if rng.random() < 0.24 + 0.24 * side else 0.0,
    }


def _spots(
    rng: np.random.Generator, count: int, smallest: float, largest: float, height: tuple[float, float]
) -> np.ndarray:
    """Spots (x, y, radius in pixels) on the unit face, [count, 3]; its outline is at -1 and 1."""
    return np.stack(
        [rng.uniform(-0.7, 0.7, count), rng.uniform(*height, count), rng.uniform(smallest, largest, count)], axis=1
    )


def _hair(rng: np.random.Generator, side: float) -> dict:
    female_share, male_share = np.array([0.34, 0.3, 0.3, 0.04, 0.02]), np.array([0.34, 0.16, 0.18, 0.2, 0.12])
    style = HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=male_share if side > 0 else female_share)]
    length = float(np.clip(rng.normal(0.42 - 0.26 * side, 0.24), 0.0, 1.0))
    return {
        "hair_style": style,
        "hair_length": 0.0 if style == "shaved" else length,
        "hair_volume": _clipped_normal(rng, 6.0, 2.4),
        "hair_line": _clipped_normal(rng, -30.0, 4.0),
        "hair_parting": float(rng.uniform(-0.7, 0.7)),
        "hair_wave": float(rng.beta(1.0, 1.8)) * 2.4,
        "hair_phase": float(rng.uniform(0.0, 2 * np.pi)),
    }


@dataclass(frozen=True, eq=False)
class Nuisance:
    """Nuisance factors of a picture. Angles are radians, lengths pixels of a 112-pixel crop, colours RGB in 0..255."""

    yaw: float
    pitch: float
    roll: float
    shift: tuple[float, float]
    scale: float
    light: tuple[float, float]  # horizontal and vertical direction; 0 is the camera's
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
    pixel_seed: tuple[int, int, int]  # of the sensor noise
    jpeg_quality: int


def draw_nuisance(seed: int, identity_index: int, image_index: int, difficulty: Difficulty = DEMO) -> Nuisance:
    """Returns the nuisance factors of picture `image_index` of a person, independent of every other picture."""
    rng = random_stream(seed, StreamId.NUISANCE, identity_index, image_index)
    turn, light = _clipped_normals(rng, 3), _clipped_normals(rng, 4)
    face = _clipped_normals(rng, 3) * difficulty.expression
    shift, cast, gaze = (
        _clipped_normals(rng, 2) * difficulty.shift,
        _clipped_normals(rng, 3) * difficulty.colour_cast,
        _clipped_normals(rng, 2),
    )
    return Nuisance(
        yaw=np.deg2rad(difficulty.yaw) * turn[0],
        pitch=np.deg2rad(difficulty.pitch) * turn[1],
        roll=np.deg2rad(difficulty.roll) * turn[2],
        shift=(float(shift[0]), float(shift[1])),
        scale=float(np.exp(difficulty.scale * _clipped_normals(rng, 1)[0])),
        light=(float(difficulty.side_light * light[0]), float(difficulty.side_light * 0.6 * light[1])),
        gain=float(np.exp(difficulty.gain * light[2])),
        gamma=float(np.exp(difficulty.gamma * light[3])),
        cast=np.exp(cast - cast.mean()),
        saturation=0.0
        if rng.random() < difficulty.grey_share
        else float(np.exp(difficulty.saturation * _clipped_normals(rng, 1)[0])),
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


def _clipped_normals(rng: np.random.Generator, count: int) -> np.ndarray:
    """Normal variates clipped at 2.5 standard deviations, the limit of what can be drawn."""
    return np.clip(rng.standard_normal(count), -2.5, 2.5)


def _occlusion(rng: np.random.Generator, difficulty: Difficulty) -> str:
    draw, cumulative = rng.random(), 0.0
    for name in ("glasses", "sunglasses", "bar", "hand"):
        cumulative += getattr(difficulty, f"{name}_share")
        if draw < cumulative:
            return name
    return ""
