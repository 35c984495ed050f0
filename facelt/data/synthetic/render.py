"""One synthetic face: identity and circumstances to pixels, or to the bytes of a JPEG."""

import cv2
import numpy as np

from facelt.data.synthetic import features, hair
from facelt.data.synthetic.camera import TEXTURE, expose, light, skin_texture
from facelt.data.synthetic.canvas import Canvas, Pose, mask
from facelt.data.synthetic.identity import IdentityParameters
from facelt.data.synthetic.nuisance import Nuisance
from facelt.data.synthetic.occlusion import cover
from facelt.errors import UserError

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
    face_n2 = features.outline(identity, nuisance)
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
        mass = hair.behind(who)
        canvas.fill(mass, who.hair * 0.82)
        for share in (0.94, 0.86):
            canvas.line(mass * [share, share, 1.0], who.hair * (0.7 if share > 0.9 else 0.95), 0.8)
    neck = 0.56 * who.cheek_width * (0.8 + 0.3 * who.jaw_width)
    canvas.fill(
        np.array([[-neck, 15, -8], [neck, 15, -8], [neck * 1.1, 70, -8], [-neck * 1.1, 70, -8.0]]), who.skin * 0.8
    )
    shoulder = np.array([[-70, 72, -12], [-60, 52, -12], [-neck, 45, -12], [0, 53, -6], [neck, 45, -12], [60, 52, -12]])
    canvas.fill(np.concatenate([shoulder, [[70, 72, -12]]]), how.clothes)
    for ear in features.ears(who):
        canvas.fill(ear, who.skin * 0.9)
    canvas.fill(face, who.skin)


def _paint_skin(canvas: Canvas, who: IdentityParameters, face_n2: np.ndarray) -> None:
    """Beard, freckles, moles and lines of age."""
    if who.beard > 0.0:
        canvas.fill(features.beard(who, face_n2), (1 - 0.75 * who.beard) * who.skin + 0.75 * who.beard * who.hair)
    for number_3, tone in ((who.freckles, 0.80), (who.moles, 0.5)):
        if len(number_3):
            canvas.dots(features.spots(number_3, who), number_3[:, 2], who.skin * tone)
    if who.age_lines > 0.15:
        for line in features.age_lines(who).values():
            canvas.line(line, who.skin * (1.0 - 0.32 * who.age_lines), 0.7)


def _paint_features(canvas: Canvas, who: IdentityParameters, how: Nuisance) -> None:
    """Eyes, brows, nose and mouth."""
    for side in (-1.0, 1.0):
        part = features.eye(who, how, side)
        canvas.line(part["fold"], who.skin * 0.72, 0.6)
        canvas.fill(part["white"], 0.25 * who.skin + 0.75 * _WHITE)
        canvas.fill(part["iris"], who.iris)
        canvas.fill(part["pupil"], _DARK)
        canvas.fill(part["glint"], _WHITE)
        canvas.line(part["lid"], 0.25 * who.skin + 0.5 * _DARK, 1.0)
        canvas.fill(features.brow(who, how, side), 0.2 * who.skin + 0.75 * who.hair)
    part = features.nose(who)
    canvas.fill(part["bridge"], np.minimum(who.skin * 1.07, 252))
    canvas.line(part["base"], who.skin * 0.70, 0.9)
    canvas.fill(part["nostril_left"], who.skin * 0.38)
    canvas.fill(part["nostril_right"], who.skin * 0.38)
    part = features.mouth(who, how)
    canvas.fill(part["opening"], np.array([70.0, 22, 26]))
    if "teeth" in part:
        canvas.fill(part["teeth"], _WHITE * 0.95)
    canvas.fill(part["upper_lip"], who.lips * 0.88)
    canvas.fill(part["lower_lip"], who.lips)
    canvas.line(part["line"], who.lips * 0.5, 0.6)


def _paint_hair(canvas: Canvas, who: IdentityParameters) -> None:
    """The cap of hair, and strands where there is length to see them."""
    if who.hair_style == "shaved":
        canvas.fill(hair.cap(who), 0.72 * who.skin + 0.28 * who.hair)
        return
    canvas.fill(hair.cap(who), who.hair)
    for number, strand in enumerate(hair.strands(who)):
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
        shapes.append((features.surface(features.ellipse(x, y, half_width, half_height), who.cheek_width), strength))
    return 0.42 * mask(size, pose, shapes, 2.0)
