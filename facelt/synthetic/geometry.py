"""The face as curves in space: each feature a polygon [n, 3] around the head's centre, in pixels of a 112-pixel crop.

x runs to the picture's right, y down, z towards the camera. The face is a cap of an ellipsoid; features lie on it.

Hair as curves in space: the mass behind the head, the cap above the hairline, and strands between the two.
"""

import numpy as np

from facelt.synthetic.identity import IdentityParameters, Nuisance

DEPTH = 30.0  # of the ellipsoid at the face's centre
REACH = 50.0  # its half height
_TURN = np.linspace(0.0, 2 * np.pi, 44, endpoint=False)
_COS, _SIN = np.cos(_TURN), np.sin(_TURN)
_ROUND = np.stack([_COS, _SIN], axis=1)[::3]
_ACROSS = np.linspace(-1.0, 1.0, 13)
_BULGE = 1.0 - _ACROSS**2


def surface(point_n2: np.ndarray, width: float, lift: float = 0.0) -> np.ndarray:
    """Points [n, 2] laid on the face's ellipsoid, `lift` pixels above it: [n, 3]."""
    inside = 1.0 - (point_n2[:, 0] / width) ** 2 - (point_n2[:, 1] / REACH) ** 2
    laid = np.empty((len(point_n2), 3))
    laid[:, :2] = point_n2
    laid[:, 2] = DEPTH * np.sqrt(np.maximum(inside, 0.0)) + lift
    return laid


def ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    """An upright ellipse [15, 2] around (x, y)."""
    return _ROUND * [half_width, half_height] + [x, y]


def outline(who: IdentityParameters, how: Nuisance) -> np.ndarray:
    """The face's outline [44, 2]: an ellipse above the eyes, narrowed and squared towards the chin below."""
    below = np.maximum(_SIN, 0.0)
    narrowing = 1.0 - (1.0 - who.jaw_width) * below**1.6
    x = who.cheek_width * np.sign(_COS) * np.abs(_COS) ** np.where(_SIN > 0, who.jaw_square, 0.8) * narrowing
    y = np.where(_SIN > 0, (who.chin + 5.0 * how.mouth_open) * below, who.forehead * _SIN)
    return np.stack([x, y], axis=1)


def ears(who: IdentityParameters) -> list[np.ndarray]:
    """Two ellipses at the cheeks, behind the face."""
    flat = [ellipse(side * (who.cheek_width + 0.5), -2.0, 0.42 * who.ear_size, who.ear_size) for side in (-1.0, 1.0)]
    return [np.column_stack([shape, np.full(len(shape), -6.0)]) for shape in flat]


def eye(who: IdentityParameters, how: Nuisance, side: float) -> dict[str, np.ndarray]:
    """One eye's white, iris, pupil, glint, lid line and fold; `side` is -1 or 1. The iris is cut by the lids."""
    opening = who.eye_open * (1.0 - 0.9 * how.eyes_closed) * (1.0 - 0.18 * max(how.smile, 0.0))
    x = who.eye_width * _ACROSS

    def lids(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bulge = np.maximum(1.0 - (at / who.eye_width) ** 2, 0.0)
        return -opening * bulge**0.8, 0.6 * opening * bulge

    def disc(radius: float, dx: float, dy: float) -> np.ndarray:
        points = _ROUND * radius + [dx, dy]
        upper, lower = lids(points[:, 0])
        return np.column_stack([points[:, 0], np.clip(points[:, 1], upper, lower)])

    upper, lower = lids(x)
    gaze_x, gaze_y = 2.2 * how.gaze[0], 1.2 * how.gaze[1] - 0.3
    fold = np.column_stack([x * 0.95, upper - 1.0 - 1.3 * who.lid_fold])[2:-2]
    local = {
        "white": np.concatenate([np.column_stack([x, upper]), np.column_stack([x, lower])[::-1]]),
        "iris": disc(2.9, gaze_x, gaze_y),
        "pupil": disc(1.25, gaze_x, gaze_y),
        "glint": disc(0.55, gaze_x + 0.9, gaze_y - 0.9),
        "lid": np.column_stack([x, upper]),
        "fold": fold,
    }
    tilt = -side * who.eye_tilt
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    centre = [side * who.eye_distance, who.eye_height]
    return {name: surface(points @ turn + centre, who.cheek_width, -2.0) for name, points in local.items()}


def brow(who: IdentityParameters, how: Nuisance, side: float) -> np.ndarray:
    """One eyebrow: an arched band, thinner outwards."""
    along = side * _ACROSS  # from the nose (-1) outwards (1)
    middle = -who.brow_arch * (1.0 - (along - 0.3) ** 2) - who.brow_tilt * who.brow_length * along
    half = 0.5 * who.brow_thickness * (1.15 - 0.5 * along**2 - 0.35 * along)
    x = side * (who.eye_distance + 0.6) + who.brow_length * _ACROSS
    y = who.eye_height - who.brow_gap + 1.5 - 2.2 * how.brow_raise + middle
    upper, lower = np.column_stack([x, y - half]), np.column_stack([x, y + half])
    return surface(np.concatenate([upper, lower[::-1]]), who.cheek_width)


def nose(who: IdentityParameters) -> dict[str, np.ndarray]:
    """The bridge (lit), the base line around the tip and the wings, and two nostrils."""
    tip, wing = who.eye_height + who.nose_length, who.nose_width
    bridge = [[-who.nose_bridge / 2, who.eye_height - 2], [who.nose_bridge / 2, who.eye_height - 2]]
    bridge += [[0.42 * wing, tip - 1], [0, tip + 0.6], [-0.42 * wing, tip - 1]]
    base = np.column_stack([wing * _COS, 3.0 * _SIN + tip - 0.5])[:23]
    base[:, 1] -= 2.2 * np.abs(base[:, 0] / wing) ** 4
    parts = {
        "bridge": (np.array(bridge), 7.0),
        "base": (base, 6.0),
        "nostril_left": (ellipse(-0.48 * wing, tip + 0.9, 0.22 * wing, 0.95), 5.0),
        "nostril_right": (ellipse(0.48 * wing, tip + 0.9, 0.22 * wing, 0.95), 5.0),
    }
    return {name: surface(points, who.cheek_width, lift) for name, (points, lift) in parts.items()}


def mouth(who: IdentityParameters, how: Nuisance) -> dict[str, np.ndarray]:
    """Upper lip, lower lip, the dark opening and, where it is open, the teeth."""
    width = who.mouth_width * (1.0 + 0.16 * max(how.smile, 0.0) - 0.12 * how.mouth_open)
    x, round_ = width * _ACROSS, _BULGE**0.7
    middle = who.mouth_height - 3.2 * how.smile * (_ACROSS**2 - 0.35)
    gap = 6.5 * how.mouth_open * _BULGE
    top = middle - 0.3 * gap - who.lip_upper * round_ + who.lip_bow * np.exp(-((_ACROSS / 0.18) ** 2))
    bottom = middle + 0.7 * gap + who.lip_lower * round_

    def band(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        points = np.concatenate([np.column_stack([x, upper]), np.column_stack([x, lower])[::-1]])
        return surface(points, who.cheek_width, 2.0)

    parts = {
        "opening": band(middle - 0.3 * gap, middle + 0.7 * gap),
        "upper_lip": band(top, middle - 0.3 * gap),
        "lower_lip": band(middle + 0.7 * gap, bottom),
        "line": surface(np.column_stack([x, middle - 0.3 * gap]), who.cheek_width, 2.0),
    }
    if how.mouth_open > 0.2:
        parts["teeth"] = band(middle - 0.3 * gap, middle - 0.3 * gap + np.minimum(0.5 * gap, 1.8))
    return parts


def beard(who: IdentityParameters, face_n2: np.ndarray) -> np.ndarray:
    """The lower face from ear to ear, above it a curve over the upper lip."""
    low = face_n2[(face_n2[:, 1] > 2.0)]
    x = np.linspace(low[:, 0].min(), low[:, 0].max(), 15)
    across = x / np.abs(x).max()
    top = np.where(
        np.abs(across) < 0.45, who.mouth_height - 6.5, who.mouth_height - 6.5 - 24.0 * (np.abs(across) - 0.45)
    )
    return surface(np.concatenate([np.column_stack([x, top]), low[np.argsort(-low[:, 0])]]) * 0.985, who.cheek_width)


def age_lines(who: IdentityParameters) -> dict[str, np.ndarray]:
    """Folds from the nose to the mouth's corners, and two lines on the forehead."""
    start, end = who.eye_height + who.nose_length - 1.0, who.mouth_height + 2.0
    along = np.linspace(0.0, 1.0, 7)
    fold = np.column_stack(
        [who.nose_width + 2 + (who.mouth_width - who.nose_width + 1.5) * along**0.7, start + (end - start) * along]
    )
    parts = {"fold_right": fold, "fold_left": fold * [-1.0, 1.0]}
    for number, height in enumerate((-6.0, -10.5)):
        y = who.eye_height - who.brow_gap + height - 1.2 * _BULGE
        parts[f"forehead_{number}"] = np.column_stack([15.0 * _ACROSS, y])
    return {name: surface(points, who.cheek_width) for name, points in parts.items()}


def spots(spot_n3: np.ndarray, who: IdentityParameters) -> np.ndarray:
    """Centres of freckles or moles from the unit face to space."""
    height = np.where(spot_n3[:, 1] > 0, who.chin, who.forehead)
    return surface(np.column_stack([spot_n3[:, 0] * who.cheek_width, spot_n3[:, 1] * height]), who.cheek_width)


_OVER = np.linspace(np.pi * 1.04, np.pi * 1.96, 25)  # from the left temple over the crown to the right
_HAIR_ACROSS = np.linspace(-1.0, 1.0, 25)


def crown(who: IdentityParameters) -> np.ndarray:
    """The hair's upper contour [25, 2] from temple to temple."""
    volume = 0.8 if who.hair_style == "shaved" else who.hair_volume
    wave = 1.0 + 0.012 * who.hair_wave * np.sin(14 * _OVER + who.hair_phase)
    across = (who.cheek_width + 0.45 * volume) * np.sign(np.cos(_OVER)) * np.abs(np.cos(_OVER)) ** 0.8
    return np.column_stack([across * wave, (who.forehead + volume) * np.sin(_OVER) * wave])


def hair_line(who: IdentityParameters) -> np.ndarray:
    """Where the hair ends on the forehead [25, 2], from temple to temple, in the style's shape."""
    x = 0.97 * who.cheek_width * np.sign(_HAIR_ACROSS) * np.abs(_HAIR_ACROSS) ** 0.7
    temple, line = -10.0, who.hair_line
    if who.hair_style == "fringe":
        rise = np.full(25, line + 7.5) + 1.3 * np.sin(9 * _HAIR_ACROSS + who.hair_phase)
    elif who.hair_style == "parted":
        rise = line - 6.0 + 13.0 * np.abs(_HAIR_ACROSS - 0.5 * who.hair_parting) ** 0.9
    elif who.hair_style == "swept":
        rise = line + 7.0 * np.sign(who.hair_parting) * _HAIR_ACROSS + 3.0 * np.cos(2.5 * _HAIR_ACROSS)
    else:  # receding and shaved: high at the corners, lower in the middle
        rise = line - 5.0 + 3.5 * np.cos(3 * np.pi * _HAIR_ACROSS) * (np.abs(_HAIR_ACROSS) < 0.7)
    edge = np.abs(_HAIR_ACROSS) ** 5
    y = (1 - edge) * np.maximum(rise, -who.forehead) + edge * temple
    return np.column_stack([x, y])


def cap(who: IdentityParameters) -> np.ndarray:
    """The hair in front [50, 3]: between the crown and the hairline."""
    return np.concatenate([_crown_3(who), _line_3(who)[::-1]])


def strands(who: IdentityParameters, count: int = 5) -> np.ndarray:
    """Lines [count, 25, 3] inside the cap that run along with the hair."""
    share = np.linspace(0.15, 0.88, count)[:, None, None]
    return (1 - share) * _line_3(who) + share * _crown_3(who)


def behind(who: IdentityParameters) -> np.ndarray:
    """The hair's mass behind the face [m, 3], down to the ears for cropped hair, to the shoulders for long hair."""
    over = crown(who)
    end = -6.0 + 72.0 * who.hair_length
    drop = np.linspace(0.0, 1.0, 12)
    wave = 1.6 * who.hair_wave * np.sin(9 * drop + who.hair_phase) * drop
    width = who.cheek_width + 0.45 * who.hair_volume + 3.0 * who.hair_length * drop + wave
    right = np.column_stack([width, over[-1, 1] + (end - over[-1, 1]) * drop])
    left = right[::-1] * [-1.0, 1.0]
    contour = np.concatenate([over, right, left])
    return np.column_stack([contour, np.full(len(contour), -10.0)])


def _crown_3(who: IdentityParameters) -> np.ndarray:
    over = crown(who)
    return np.column_stack([over, np.full(len(over), -4.0)])


def _line_3(who: IdentityParameters) -> np.ndarray:
    return surface(hair_line(who), who.cheek_width, 1.0)
