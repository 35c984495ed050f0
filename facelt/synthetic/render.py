"""A supersampled canvas that takes curves in space and paints them as the camera sees them.

From a painted face to a photograph: skin texture, soft shade, light, colour response, blur and sensor noise.

Things in front of a face: glasses, a bar, a hand.

One synthetic face: identity and circumstances to pixels, or to the bytes of a JPEG.

Many faces at once: JPEG files in the order asked for, rendered by a pool of processes.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial

import cv2
import numpy as np

from facelt.errors import UserError
from facelt.synthetic import geometry
from facelt.synthetic.geometry import ellipse, surface
from facelt.synthetic.identity import (
    FIELD_SIDE,
    Difficulty,
    IdentityParameters,
    Nuisance,
    Purpose,
    draw_identity,
    draw_nuisance,
    stream,
)

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


def cover(canvas: Canvas, who: IdentityParameters, how: Nuisance) -> None:
    """Paint this picture's occlusion, if it has one."""
    if how.occlusion in ("glasses", "sunglasses"):
        _glasses(canvas, who, how)
    elif how.occlusion == "bar":
        _bar(canvas, how)
    elif how.occlusion == "hand":
        _hand(canvas, how)


def _glasses(canvas: Canvas, who: IdentityParameters, how: Nuisance) -> None:
    frame, dark = how.occlusion_colour * 0.5, how.occlusion == "sunglasses"
    width, height = 10.0 + 2.5 * how.occlusion_place[0], 6.5 + 2.5 * how.occlusion_place[1]
    for side in (-1.0, 1.0):
        rim = surface(ellipse(side * 17.0, who.eye_height + 0.5, width, height), who.cheek_width, 3.0)
        if dark:
            canvas.fill(rim, np.array([26.0, 26, 30]))
        canvas.line(np.concatenate([rim, rim[:1]]), frame, 1.2)
        arm = np.array([[side * (17.0 + width), who.eye_height], [side * who.cheek_width, who.eye_height - 2.0]])
        canvas.line(surface(arm, who.cheek_width, 1.0), frame, 1.2)
    bridge = np.array([[-17.0 + width, who.eye_height], [0.0, who.eye_height - 1.5], [17.0 - width, who.eye_height]])
    canvas.line(surface(bridge, who.cheek_width, 5.0), frame, 1.2)


def _bar(canvas: Canvas, how: Nuisance) -> None:
    """A straight band across the picture at any height and slope, in picture coordinates."""
    height, width, turn = how.occlusion_place
    centre, half = np.array([56.0, 25.0 + 70.0 * height]), 3.0 + 5.0 * width
    along = np.array([np.cos(1.4 * turn - 0.7), np.sin(1.4 * turn - 0.7)])
    across = np.array([-along[1], along[0]]) * half
    ends = np.array([centre - 100 * along, centre + 100 * along])
    canvas.fill(
        np.array([ends[0] - across, ends[1] - across, ends[1] + across, ends[0] + across]), how.occlusion_colour
    )


def _hand(canvas: Canvas, how: Nuisance) -> None:
    """A palm and four fingers that reach in from the lower left or right."""
    x, y, turn = how.occlusion_place
    side = -1.0 if x < 0.5 else 1.0
    palm = np.array([56.0 + side * (30.0 + 24.0 * abs(x - 0.5)), 80.0 + 22.0 * y])
    colour = np.array([126.0, 86, 66]) + (how.occlusion_colour - 15) / 220 * np.array([100.0, 100, 100])
    canvas.fill(ellipse(palm[0], palm[1], 13.0, 15.0), colour)
    for finger in range(4):
        angle = -np.pi / 2 - side * (0.35 + 0.9 * turn + 0.22 * (finger - 1.5))
        tip = palm + (25.0 + 3.0 * (finger in (1, 2))) * np.array([np.cos(angle), np.sin(angle)])
        start = palm + np.array([6.0 * (finger - 1.5), -6.0])
        canvas.line(np.array([start, tip]), colour * (0.94 + 0.03 * (finger % 2)), 6.0)


SMALLEST, LARGEST = 16, 1024
_DARK = np.array([24.0, 16, 16])
_WHITE = np.array([236.0, 232, 228])


def render_face(identity: IdentityParameters, nuisance: Nuisance, size: int = 112) -> np.ndarray:
    """A face as uint8 RGB [size, size, 3], before JPEG.

    Raises UserError where `size` is no whole number in 16..1024.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not SMALLEST <= size <= LARGEST:
        raise UserError(f"synthetic faces: the size must be a whole number in {SMALLEST}..{LARGEST}, not {size!r}")
    pose = Pose(nuisance)
    canvas = Canvas(size, pose, nuisance.backdrop)
    face_n2 = geometry.outline(identity, nuisance)
    face = np.column_stack([face_n2, np.zeros(len(face_n2))])
    _paint_behind(canvas, identity, nuisance, face)
    _paint_skin(canvas, identity, face_n2)
    _paint_features(canvas, identity, nuisance)
    _paint_hair(canvas, identity)
    cover(canvas, identity, nuisance)
    picture = canvas.small(size)
    skin = mask(size, pose, [(face, 255)], 1.2)
    relief = 1.0 + TEXTURE * skin * skin_texture(identity, pose, size) - _shade(identity, pose, size)
    picture *= (relief * light(nuisance, size))[:, :, None]
    return expose(picture, nuisance)


def encode_face(identity: IdentityParameters, nuisance: Nuisance, size: int = 112) -> bytes:
    """The same face as a JPEG file of the quality that `nuisance` names."""
    picture = render_face(identity, nuisance, size)
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, nuisance.jpeg_quality])
    if not done:
        raise RuntimeError("cv2 could not encode a JPEG")
    return data.tobytes()


def _paint_behind(canvas: Canvas, who: IdentityParameters, how: Nuisance, face: np.ndarray) -> None:
    """Hair behind the head, neck, clothes, ears and the bare face."""
    if who.hair_style != "shaved":
        mass = geometry.behind(who)
        canvas.fill(mass, who.hair * 0.82)
        for share in (0.94, 0.86):
            canvas.line(mass * [share, share, 1.0], who.hair * (0.7 if share > 0.9 else 0.95), 0.8)
    neck = 0.56 * who.cheek_width * (0.8 + 0.3 * who.jaw_width)
    canvas.fill(
        np.array([[-neck, 15, -8], [neck, 15, -8], [neck * 1.1, 70, -8], [-neck * 1.1, 70, -8.0]]), who.skin * 0.8
    )
    shoulder = np.array([[-70, 72, -12], [-60, 52, -12], [-neck, 45, -12], [0, 53, -6], [neck, 45, -12], [60, 52, -12]])
    canvas.fill(np.concatenate([shoulder, [[70, 72, -12]]]), how.clothes)
    for ear in geometry.ears(who):
        canvas.fill(ear, who.skin * 0.9)
    canvas.fill(face, who.skin)


def _paint_skin(canvas: Canvas, who: IdentityParameters, face_n2: np.ndarray) -> None:
    """Beard, freckles, moles and lines of age."""
    if who.beard > 0.0:
        canvas.fill(geometry.beard(who, face_n2), (1 - 0.75 * who.beard) * who.skin + 0.75 * who.beard * who.hair)
    for number_3, tone in ((who.freckles, 0.80), (who.moles, 0.5)):
        if len(number_3):
            canvas.dots(geometry.spots(number_3, who), number_3[:, 2], who.skin * tone)
    if who.age_lines > 0.15:
        for line in geometry.age_lines(who).values():
            canvas.line(line, who.skin * (1.0 - 0.32 * who.age_lines), 0.7)


def _paint_features(canvas: Canvas, who: IdentityParameters, how: Nuisance) -> None:
    """Eyes, brows, nose and mouth."""
    for side in (-1.0, 1.0):
        part = geometry.eye(who, how, side)
        canvas.line(part["fold"], who.skin * 0.72, 0.6)
        canvas.fill(part["white"], 0.25 * who.skin + 0.75 * _WHITE)
        canvas.fill(part["iris"], who.iris)
        canvas.fill(part["pupil"], _DARK)
        canvas.fill(part["glint"], _WHITE)
        canvas.line(part["lid"], 0.25 * who.skin + 0.5 * _DARK, 1.0)
        canvas.fill(geometry.brow(who, how, side), 0.2 * who.skin + 0.75 * who.hair)
    part = geometry.nose(who)
    canvas.fill(part["bridge"], np.minimum(who.skin * 1.07, 252))
    canvas.line(part["base"], who.skin * 0.70, 0.9)
    canvas.fill(part["nostril_left"], who.skin * 0.38)
    canvas.fill(part["nostril_right"], who.skin * 0.38)
    part = geometry.mouth(who, how)
    canvas.fill(part["opening"], np.array([70.0, 22, 26]))
    if "teeth" in part:
        canvas.fill(part["teeth"], _WHITE * 0.95)
    canvas.fill(part["upper_lip"], who.lips * 0.88)
    canvas.fill(part["lower_lip"], who.lips)
    canvas.line(part["line"], who.lips * 0.5, 0.6)


def _paint_hair(canvas: Canvas, who: IdentityParameters) -> None:
    """The cap of hair, and strands where there is length to see them."""
    if who.hair_style == "shaved":
        canvas.fill(geometry.cap(who), 0.72 * who.skin + 0.28 * who.hair)
        return
    canvas.fill(geometry.cap(who), who.hair)
    for number, strand in enumerate(geometry.strands(who)):
        canvas.line(strand, who.hair * (1.22 if number % 2 else 0.8), 0.6)


def _shade(who: IdentityParameters, pose: Pose, size: int) -> np.ndarray:
    """Soft shadow of eye sockets, nose, lower lip and cheeks: the share of light lost, float32 [size, size]."""
    shapes = []
    for x, y, half_width, half_height, strength in (
        (who.eye_distance, who.eye_height - 2.5, who.eye_width + 2.0, who.brow_gap * 0.55, 120),
        (-who.eye_distance, who.eye_height - 2.5, who.eye_width + 2.0, who.brow_gap * 0.55, 120),
        (0.0, who.eye_height + who.nose_length + 3.5, who.nose_width, 1.8, 150),
        (0.0, who.mouth_height + who.lip_lower + 2.6, 0.6 * who.mouth_width, 1.3, 120),
        (0.62 * who.cheek_width, 18.0, 5.0, 9.0, 55),
        (-0.62 * who.cheek_width, 18.0, 5.0, 9.0, 55),
    ):
        shapes.append((geometry.surface(geometry.ellipse(x, y, half_width, half_height), who.cheek_width), strength))
    return 0.42 * mask(size, pose, shapes, 2.0)


CHUNK = 64  # pictures a worker renders at a time: about a quarter of a second
Picture = tuple[int, int]  # identity index, image index


def identity_name(index: int) -> str:
    """The name that says what it is: `synthetic_00012`."""
    return f"synthetic_{index:05d}"


def render_album(
    pictures: Sequence[Picture], *, seed: int, difficulty: Difficulty, size: int, workers: int | None
) -> Iterator[bytes]:
    """JPEG bytes of each picture, in order; the bytes do not depend on the number of workers.

    `workers` None takes the cores this process may use; 1 renders in this process. Raises UserError where `workers`
    is below 1 or a worker dies (usually for want of memory).
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"synthetic faces: workers must be a whole number from 1, not {workers!r}")
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    render = partial(_render, seed=seed, difficulty=difficulty, size=size)
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            yield from render(chunk)
        return
    # Forked workers start at once; a fresh interpreter would import torch through facelt.data first.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        try:
            for files in pool.map(render, chunks):
                yield from files
        except BrokenProcessPool as error:
            raise UserError("synthetic faces: a rendering process died; retry with fewer workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _render(pictures: Sequence[Picture], *, seed: int, difficulty: Difficulty, size: int) -> list[bytes]:
    files, last, person = [], None, None
    for identity, image in pictures:
        if identity != last:
            last, person = identity, draw_identity(seed, identity)
        files.append(encode_face(person, draw_nuisance(seed, identity, image, difficulty), size))
    return files
