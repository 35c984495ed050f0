"""Rendering of synthetic faces: painting on a canvas, light and camera, and JPEG files from a pool of processes."""

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
    SKIN_FIELD_SIDE,
    Difficulty,
    IdentityParameters,
    Nuisance,
    StreamId,
    draw_identity,
    draw_nuisance,
    random_stream,
)

_SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of OpenCV's coordinates
_CENTRE = np.array([56.0, 60.0])  # of the head in a 112-pixel crop
_ANCHOR = np.array([[0.0, 6.0, 26.0]])  # the point that alignment keeps in place
_CHUNK_IMAGES = 64  # rendered by a worker at a time, in about a quarter of a second
_TEXTURE = 0.16  # strongest change of the skin's brightness by its own texture
_LUMA = np.array([[0.299, 0.587, 0.114]])
_MIN_SIZE, _MAX_SIZE = 16, 1024
_DARK = np.array([24.0, 16, 16])
_WHITE = np.array([236.0, 232, 228])
ImageId = tuple[int, int]  # person index, image index


class _Pose:
    """Projection to the picture: out-of-plane rotation by depth, then rotation, scale and shift in the plane."""

    def __init__(self, nuisance: Nuisance):
        cos_yaw, sin_yaw = np.cos(nuisance.yaw), np.sin(nuisance.yaw)
        cos_pitch, sin_pitch = np.cos(nuisance.pitch), np.sin(nuisance.pitch)
        cos_roll, sin_roll = np.cos(nuisance.roll), np.sin(nuisance.roll)
        turn = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
        nod = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
        roll = np.array([[cos_roll, -sin_roll], [sin_roll, cos_roll]])
        self.matrix = nuisance.scale * roll @ (nod @ turn)[:2]
        # Crops are aligned on eyes, nose and mouth: a turned head stays centred up to the error of the aligner.
        moved = _ANCHOR @ self.matrix.T - _ANCHOR[:, :2]
        self.offset = _CENTRE + nuisance.shift - 0.85 * moved[0]

    def project(self, point_n3: np.ndarray) -> np.ndarray:
        """Projects points [..., 3] to coordinates [..., 2] in a 112-pixel crop."""
        return point_n3 @ self.matrix.T + self.offset


class _Canvas:
    """Canvas for anti-aliased polygons, lines and dots at _SUPERSAMPLING times the size of the picture."""

    def __init__(self, size: int, pose: _Pose, backdrop: np.ndarray):
        side = size * _SUPERSAMPLING
        down = np.linspace(0.0, 1.0, side)[:, None]
        column = np.clip((1 - down) * backdrop[0] + down * backdrop[1], 0, 255).astype(np.uint8)
        self.pixels = cv2.repeat(column[:, None, :], 1, side)
        self.factor = side / 112.0
        self.pose = pose

    def fixed(self, point_n3: np.ndarray) -> np.ndarray:
        """Returns projected points as OpenCV's fixed-point integers."""
        flat = point_n3 if point_n3.shape[-1] == 2 else self.pose.project(point_n3)
        return np.rint(flat * (self.factor * (1 << _SHIFT))).astype(np.int32)

    def fill(self, point_n3: np.ndarray, colour: np.ndarray) -> None:
        """Fills a polygon."""
        cv2.fillPoly(self.pixels, [self.fixed(point_n3)], _tuple(colour), cv2.LINE_AA, _SHIFT)

    def line(self, point_n3: np.ndarray, colour: np.ndarray, width: float) -> None:
        """Draws an open line, `width` pixels of the 112-pixel crop wide, at least one pixel of the canvas."""
        thickness = max(1, round(width * self.factor))
        cv2.polylines(self.pixels, [self.fixed(point_n3)], False, _tuple(colour), thickness, cv2.LINE_AA, _SHIFT)

    def dots(self, point_n3: np.ndarray, radius_n: np.ndarray, colour: np.ndarray) -> None:
        """Draws filled circles."""
        radii = np.rint(radius_n * (self.factor * (1 << _SHIFT))).astype(int).tolist()
        for (x, y), radius in zip(self.fixed(point_n3).tolist(), radii, strict=True):
            cv2.circle(self.pixels, (x, y), radius, _tuple(colour), -1, cv2.LINE_AA, _SHIFT)

    def downscale(self, size: int) -> np.ndarray:
        """Returns the picture at its final size: float32 RGB [size, size, 3], 0..255."""
        return cv2.resize(self.pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)


def _blurred_mask(size: int, pose: _Pose, shapes: list[tuple[np.ndarray, int]], blur: float) -> np.ndarray:
    """Polygons (points, strength 0..255) on black, blurred by `blur` pixels of the crop: float32 [size, size], 0..1."""
    layer, factor = np.zeros((size, size), np.uint8), size / 112.0
    for points, strength in shapes:
        fixed = np.rint(pose.project(points) * (factor * (1 << _SHIFT))).astype(np.int32)
        cv2.fillPoly(layer, [fixed], strength, cv2.LINE_AA, _SHIFT)
    return cv2.GaussianBlur(layer, (0, 0), blur * factor).astype(np.float32) / 255.0


def _tuple(colour: np.ndarray) -> tuple[float, float, float]:
    return tuple(colour.tolist())  # cv2 saturates


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit surface normals of the pixels: side, height and depth, each [size, size]."""
    at = (np.arange(size, dtype=np.float32) + 0.5) * (112.0 / size)
    side = ((at[None, :] - _CENTRE[0]) / 46.0) * np.ones((size, 1), np.float32)
    height = ((at[:, None] - _CENTRE[1]) / 56.0) * np.ones((1, size), np.float32)
    # A bump without an edge, not a ball, so that the area around the head shows no rim of light.
    depth = 1.0 / np.sqrt(1.0 + side**2 + height**2)
    return side * depth, height * depth, depth


def _skin_texture(person: IdentityParameters, pose: _Pose, size: int) -> np.ndarray:
    """Blotches of the person's skin in the pose of the head: float32 [size, size], about -1..1."""
    step = 92.0 / (SKIN_FIELD_SIDE - 1)
    start = -46.0
    # The field is on a plane at the depth of the cheeks, so that it moves with the features above it.
    plane = pose.matrix @ np.array([[step, 0.0, start], [0.0, step, start], [0.0, 0.0, 20.0]])
    plane[:, 2] += pose.offset
    plane *= size / 112.0
    return cv2.warpAffine(
        person.skin_field, plane, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def _lighting(nuisance: Nuisance, size: int) -> np.ndarray:
    """Light from one side on a round head, times the gain, [size, size]: Lambert's cosine plus ambient light."""
    side, height, depth = _grid(size)
    across, up = nuisance.light
    forward = 1.0 / np.sqrt(1.0 + across**2 + up**2)
    cosine = np.float32(across * forward) * side + np.float32(up * forward) * height + np.float32(forward) * depth
    return np.float32(0.52 * nuisance.gain) + np.float32(0.60 * nuisance.gain) * np.maximum(cosine, np.float32(-0.3))


def _apply_camera(picture_HWC: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """Applies colour cast, saturation, blur, sensor noise and gamma: uint8 RGB."""
    grey = nuisance.saturation * np.eye(3) + (1.0 - nuisance.saturation) * np.repeat(_LUMA, 3, axis=0)
    picture = cv2.transform(picture_HWC, (grey * nuisance.cast).astype(np.float32))
    if nuisance.blur > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), nuisance.blur * picture.shape[0] / 112.0)
    if nuisance.noise > 0.0:
        rng = random_stream(nuisance.pixel_seed[0], StreamId.PIXELS, *nuisance.pixel_seed[1:])
        picture += np.float32(nuisance.noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    levels = cv2.convertScaleAbs(np.maximum(picture, 0.0, out=picture))  # rounds and saturates
    return cv2.LUT(levels, _gamma_table(nuisance.gamma))


def _gamma_table(gamma: float) -> np.ndarray:
    return np.rint(255.0 * (np.arange(256) / 255.0) ** gamma).astype(np.uint8)


def _paint_occlusion(canvas: _Canvas, person: IdentityParameters, nuisance: Nuisance) -> None:
    """Paints the occlusion of the picture, if any."""
    if nuisance.occlusion in ("glasses", "sunglasses"):
        _glasses(canvas, person, nuisance)
    elif nuisance.occlusion == "bar":
        _bar(canvas, nuisance)
    elif nuisance.occlusion == "hand":
        _hand(canvas, nuisance)


def _glasses(canvas: _Canvas, person: IdentityParameters, nuisance: Nuisance) -> None:
    frame, is_dark = nuisance.occlusion_colour * 0.5, nuisance.occlusion == "sunglasses"
    width, height = 10.0 + 2.5 * nuisance.occlusion_place[0], 6.5 + 2.5 * nuisance.occlusion_place[1]
    for side in (-1.0, 1.0):
        rim = surface(ellipse(side * 17.0, person.eye_height + 0.5, width, height), person.cheek_width, 3.0)
        if is_dark:
            canvas.fill(rim, np.array([26.0, 26, 30]))
        canvas.line(np.concatenate([rim, rim[:1]]), frame, 1.2)
        arm = np.array(
            [[side * (17.0 + width), person.eye_height], [side * person.cheek_width, person.eye_height - 2.0]]
        )
        canvas.line(surface(arm, person.cheek_width, 1.0), frame, 1.2)
    bridge = np.array(
        [[-17.0 + width, person.eye_height], [0.0, person.eye_height - 1.5], [17.0 - width, person.eye_height]]
    )
    canvas.line(surface(bridge, person.cheek_width, 5.0), frame, 1.2)


def _bar(canvas: _Canvas, nuisance: Nuisance) -> None:
    """Paints a straight band across the picture at any height and slope."""
    height, width, turn = nuisance.occlusion_place
    centre, half = np.array([56.0, 25.0 + 70.0 * height]), 3.0 + 5.0 * width
    along = np.array([np.cos(1.4 * turn - 0.7), np.sin(1.4 * turn - 0.7)])
    across = np.array([-along[1], along[0]]) * half
    ends = np.array([centre - 100 * along, centre + 100 * along])
    canvas.fill(
        np.array([ends[0] - across, ends[1] - across, ends[1] + across, ends[0] + across]), nuisance.occlusion_colour
    )


def _hand(canvas: _Canvas, nuisance: Nuisance) -> None:
    """Paints a palm and four fingers that reach in from the lower left or right."""
    x, y, turn = nuisance.occlusion_place
    side = -1.0 if x < 0.5 else 1.0
    palm = np.array([56.0 + side * (30.0 + 24.0 * abs(x - 0.5)), 80.0 + 22.0 * y])
    colour = np.array([126.0, 86, 66]) + (nuisance.occlusion_colour - 15) / 220 * np.array([100.0, 100, 100])
    canvas.fill(ellipse(palm[0], palm[1], 13.0, 15.0), colour)
    for finger in range(4):
        angle = -np.pi / 2 - side * (0.35 + 0.9 * turn + 0.22 * (finger - 1.5))
        tip = palm + (25.0 + 3.0 * (finger in (1, 2))) * np.array([np.cos(angle), np.sin(angle)])
        start = palm + np.array([6.0 * (finger - 1.5), -6.0])
        canvas.line(np.array([start, tip]), colour * (0.94 + 0.03 * (finger % 2)), 6.0)


def render_face(person: IdentityParameters, nuisance: Nuisance, size: int = 112) -> np.ndarray:
    """Returns a face as uint8 RGB [size, size, 3], before JPEG compression.

    Raises UserError if `size` is not a whole number in 16..1024.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not _MIN_SIZE <= size <= _MAX_SIZE:
        raise UserError(f"synthetic faces: the size must be a whole number in {_MIN_SIZE}..{_MAX_SIZE}, not {size!r}")
    pose = _Pose(nuisance)
    canvas = _Canvas(size, pose, nuisance.backdrop)
    face_n2 = geometry.outline(person, nuisance)
    face = np.column_stack([face_n2, np.zeros(len(face_n2))])
    _paint_behind(canvas, person, nuisance, face)
    _paint_skin(canvas, person, face_n2)
    _paint_features(canvas, person, nuisance)
    _paint_hair(canvas, person)
    _paint_occlusion(canvas, person, nuisance)
    picture = canvas.downscale(size)
    skin = _blurred_mask(size, pose, [(face, 255)], 1.2)
    relief = 1.0 + _TEXTURE * skin * _skin_texture(person, pose, size) - _shade(person, pose, size)
    picture *= (relief * _lighting(nuisance, size))[:, :, None]
    return _apply_camera(picture, nuisance)


def encode_face(person: IdentityParameters, nuisance: Nuisance, size: int = 112) -> bytes:
    """Returns the face of `render_face` as a JPEG file of the quality that `nuisance` states."""
    picture = render_face(person, nuisance, size)
    is_encoded, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, nuisance.jpeg_quality])
    if not is_encoded:
        raise RuntimeError("cv2 could not encode a JPEG")
    return data.tobytes()


def identity_name(index: int) -> str:
    """Returns the name of an identity, such as synthetic_00012."""
    return f"synthetic_{index:05d}"


def render_jpegs(
    pictures: Sequence[ImageId], *, seed: int, difficulty: Difficulty, size: int, workers: int | None
) -> Iterator[bytes]:
    """Yields the JPEG bytes of each picture, in order; they do not depend on the number of workers.

    `workers` None takes the cores this process may use; 1 renders in this process. Raises UserError if `workers` is
    below 1 or a worker dies, usually from a lack of memory.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"synthetic faces: workers must be a whole number of at least 1, not {workers!r}")
    chunks = [pictures[start : start + _CHUNK_IMAGES] for start in range(0, len(pictures), _CHUNK_IMAGES)]
    render = partial(_render, seed=seed, difficulty=difficulty, size=size)
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            yield from render(chunk)
        return
    # Forked workers start at once; a new interpreter would first import this package.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        try:
            for files in pool.map(render, chunks):
                yield from files
        except BrokenProcessPool as error:
            raise UserError("synthetic faces: a rendering process died; retry with fewer workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _render(pictures: Sequence[ImageId], *, seed: int, difficulty: Difficulty, size: int) -> list[bytes]:
    files, last, person = [], None, None
    for index, image in pictures:
        if index != last:
            last, person = index, draw_identity(seed, index)
        files.append(encode_face(person, draw_nuisance(seed, index, image, difficulty), size))
    return files


def _paint_behind(canvas: _Canvas, person: IdentityParameters, nuisance: Nuisance, face: np.ndarray) -> None:
    """Paints hair behind the head, neck, clothes, ears and the bare face."""
    if person.hair_style != "shaved":
        mass = geometry.back_hair(person)
        canvas.fill(mass, person.hair * 0.82)
        for share in (0.94, 0.86):
            canvas.line(mass * [share, share, 1.0], person.hair * (0.7 if share > 0.9 else 0.95), 0.8)
    neck = 0.56 * person.cheek_width * (0.8 + 0.3 * person.jaw_width)
    canvas.fill(
        np.array([[-neck, 15, -8], [neck, 15, -8], [neck * 1.1, 70, -8], [-neck * 1.1, 70, -8.0]]), person.skin * 0.8
    )
    shoulder = np.array([[-70, 72, -12], [-60, 52, -12], [-neck, 45, -12], [0, 53, -6], [neck, 45, -12], [60, 52, -12]])
    canvas.fill(np.concatenate([shoulder, [[70, 72, -12]]]), nuisance.clothes)
    for ear in geometry.ears(person):
        canvas.fill(ear, person.skin * 0.9)
    canvas.fill(face, person.skin)


def _paint_skin(canvas: _Canvas, person: IdentityParameters, face_n2: np.ndarray) -> None:
    """Paints beard, freckles, moles and age lines."""
    if person.beard > 0.0:
        canvas.fill(
            geometry.beard(person, face_n2),
            (1 - 0.75 * person.beard) * person.skin + 0.75 * person.beard * person.hair,
        )
    for number_3, tone in ((person.freckles, 0.80), (person.moles, 0.5)):
        if len(number_3):
            canvas.dots(geometry.spots(number_3, person), number_3[:, 2], person.skin * tone)
    if person.age_lines > 0.15:
        for line in geometry.age_lines(person).values():
            canvas.line(line, person.skin * (1.0 - 0.32 * person.age_lines), 0.7)


def _paint_features(canvas: _Canvas, person: IdentityParameters, nuisance: Nuisance) -> None:
    """Paints eyes, brows, nose and mouth."""
    for side in (-1.0, 1.0):
        part = geometry.eye(person, nuisance, side)
        canvas.line(part["fold"], person.skin * 0.72, 0.6)
        canvas.fill(part["white"], 0.25 * person.skin + 0.75 * _WHITE)
        canvas.fill(part["iris"], person.iris)
        canvas.fill(part["pupil"], _DARK)
        canvas.fill(part["glint"], _WHITE)
        canvas.line(part["lid"], 0.25 * person.skin + 0.5 * _DARK, 1.0)
        canvas.fill(geometry.brow(person, nuisance, side), 0.2 * person.skin + 0.75 * person.hair)
    part = geometry.nose(person)
    canvas.fill(part["bridge"], np.minimum(person.skin * 1.07, 252))
    canvas.line(part["base"], person.skin * 0.70, 0.9)
    canvas.fill(part["nostril_left"], person.skin * 0.38)
    canvas.fill(part["nostril_right"], person.skin * 0.38)
    part = geometry.mouth(person, nuisance)
    canvas.fill(part["opening"], np.array([70.0, 22, 26]))
    if "teeth" in part:
        canvas.fill(part["teeth"], _WHITE * 0.95)
    canvas.fill(part["upper_lip"], person.lips * 0.88)
    canvas.fill(part["lower_lip"], person.lips)
    canvas.line(part["line"], person.lips * 0.5, 0.6)


def _paint_hair(canvas: _Canvas, person: IdentityParameters) -> None:
    """Paints the cap of hair and, unless it is shaved, its strands."""
    if person.hair_style == "shaved":
        canvas.fill(geometry.cap(person), 0.72 * person.skin + 0.28 * person.hair)
        return
    canvas.fill(geometry.cap(person), person.hair)
    for number, strand in enumerate(geometry.strands(person)):
        canvas.line(strand, person.hair * (1.22 if number % 2 else 0.8), 0.6)


def _shade(person: IdentityParameters, pose: _Pose, size: int) -> np.ndarray:
    """Soft shadow of eye sockets, nose, lower lip and cheeks: fraction of light lost, float32 [size, size]."""
    shapes = []
    for x, y, half_width, half_height, strength in (
        (person.eye_distance, person.eye_height - 2.5, person.eye_width + 2.0, person.brow_gap * 0.55, 120),
        (-person.eye_distance, person.eye_height - 2.5, person.eye_width + 2.0, person.brow_gap * 0.55, 120),
        (0.0, person.eye_height + person.nose_length + 3.5, person.nose_width, 1.8, 150),
        (0.0, person.mouth_height + person.lip_lower + 2.6, 0.6 * person.mouth_width, 1.3, 120),
        (0.62 * person.cheek_width, 18.0, 5.0, 9.0, 55),
        (-0.62 * person.cheek_width, 18.0, 5.0, 9.0, 55),
    ):
        shapes.append((geometry.surface(geometry.ellipse(x, y, half_width, half_height), person.cheek_width), strength))
    return 0.42 * _blurred_mask(size, pose, shapes, 2.0)
