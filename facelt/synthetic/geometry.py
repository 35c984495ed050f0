"""Geometry of synthetic faces: each feature is a polygon [n, 3] around the head centre, in pixels of a 112-pixel crop.

x points to the right of the picture, y down, z towards the camera. The face is a cap of an ellipsoid and features lie
on it. Hair consists of the mass behind the head, the cap above the hairline, and strands between the two.
"""

import numpy as np

from facelt.synthetic.identity import IdentityParameters, Nuisance

_DEPTH = 30.0  # of the ellipsoid at the centre of the face
_HALF_HEIGHT = 50.0  # of the ellipsoid
_TURN = np.linspace(0.0, 2 * np.pi, 44, endpoint=False)
_COS, _SIN = np.cos(_TURN), np.sin(_TURN)
_ROUND = np.stack([_COS, _SIN], axis=1)[::3]
_ACROSS = np.linspace(-1.0, 1.0, 13)
_BULGE = 1.0 - _ACROSS**2


def surface(point_n2: np.ndarray, width: float, lift: float = 0.0) -> np.ndarray:
    """Projects points [n, 2] onto the ellipsoid of the face, `lift` pixels above it: [n, 3]."""
    remaining = 1.0 - (point_n2[:, 0] / width) ** 2 - (point_n2[:, 1] / _HALF_HEIGHT) ** 2
    point_n3 = np.empty((len(point_n2), 3))
    point_n3[:, :2] = point_n2
    point_n3[:, 2] = _DEPTH * np.sqrt(np.maximum(remaining, 0.0)) + lift
    return point_n3


def ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    """Returns an upright ellipse [15, 2] around (x, y)."""
    return _ROUND * [half_width, half_height] + [x, y]


def outline(person: IdentityParameters, nuisance: Nuisance) -> np.ndarray:
    """Returns the outline of the face [44, 2]: an ellipse above the eyes, narrowed and squared towards the chin."""
    below = np.maximum(_SIN, 0.0)
    narrowing = 1.0 - (1.0 - person.jaw_width) * below**1.6
    x = person.cheek_width * np.sign(_COS) * np.abs(_COS) ** np.where(_SIN > 0, person.jaw_square, 0.8) * narrowing
    y = np.where(_SIN > 0, (person.chin + 5.0 * nuisance.mouth_open) * below, person.forehead * _SIN)
    return np.stack([x, y], axis=1)


def ears(person: IdentityParameters) -> list[np.ndarray]:
    """Returns two ellipses at the cheeks, behind the face."""
    flat = [
        ellipse(side * (person.cheek_width + 0.5), -2.0, 0.42 * person.ear_size, person.ear_size)
        for side in (-1.0, 1.0)
    ]
    return [np.column_stack([shape, np.full(len(shape), -6.0)]) for shape in flat]


def eye(person: IdentityParameters, nuisance: Nuisance, side: float) -> dict[str, np.ndarray]:
    """Returns white, iris, pupil, glint, lid line and fold of one eye; `side` is -1 or 1. The lids cut the iris."""
    opening = person.eye_open * (1.0 - 0.9 * nuisance.eyes_closed) * (1.0 - 0.18 * max(nuisance.smile, 0.0))
    x = person.eye_width * _ACROSS

    def lids(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bulge = np.maximum(1.0 - (at / person.eye_width) ** 2, 0.0)
        return -opening * bulge**0.8, 0.6 * opening * bulge

    def disc(radius: float, dx: float, dy: float) -> np.ndarray:
        points = _ROUND * radius + [dx, dy]
        upper, lower = lids(points[:, 0])
        return np.column_stack([points[:, 0], np.clip(points[:, 1], upper, lower)])

    upper, lower = lids(x)
    gaze_x, gaze_y = 2.2 * nuisance.gaze[0], 1.2 * nuisance.gaze[1] - 0.3
    fold = np.column_stack([x * 0.95, upper - 1.0 - 1.3 * person.lid_fold])[2:-2]
    local = {
        "white": np.concatenate([np.column_stack([x, upper]), np.column_stack([x, lower])[::-1]]),
        "iris": disc(2.9, gaze_x, gaze_y),
        "pupil": disc(1.25, gaze_x, gaze_y),
        "glint": disc(0.55, gaze_x + 0.9, gaze_y - 0.9),
        "lid": np.column_stack([x, upper]),
        "fold": fold,
    }
    tilt = -side * person.eye_tilt
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    centre = [side * person.eye_distance, person.eye_height]
    return {name: surface(points @ turn + centre, person.cheek_width, -2.0) for name, points in local.items()}


def brow(person: IdentityParameters, nuisance: Nuisance, side: float) -> np.ndarray:
    """Returns one eyebrow: an arched band, thinner outwards."""
    along = side * _ACROSS  # from the nose (-1) outwards (1)
    middle = -person.brow_arch * (1.0 - (along - 0.3) ** 2) - person.brow_tilt * person.brow_length * along
    half = 0.5 * person.brow_thickness * (1.15 - 0.5 * along**2 - 0.35 * along)
    x = side * (person.eye_distance + 0.6) + person.brow_length * _ACROSS
    y = person.eye_height - person.brow_gap + 1.5 - 2.2 * nuisance.brow_raise + middle
    upper, lower = np.column_stack([x, y - half]), np.column_stack([x, y + half])
    return surface(np.concatenate([upper, lower[::-1]]), person.cheek_width)


def nose(person: IdentityParameters) -> dict[str, np.ndarray]:
    """Returns the bridge, the base line around tip and wings, and two nostrils."""
    tip, wing = person.eye_height + person.nose_length, person.nose_width
    bridge = [[-person.nose_bridge / 2, person.eye_height - 2], [person.nose_bridge / 2, person.eye_height - 2]]
    bridge += [[0.42 * wing, tip - 1], [0, tip + 0.6], [-0.42 * wing, tip - 1]]
    base = np.column_stack([wing * _COS, 3.0 * _SIN + tip - 0.5])[:23]
    base[:, 1] -= 2.2 * np.abs(base[:, 0] / wing) ** 4
    parts = {
        "bridge": (np.array(bridge), 7.0),
        "base": (base, 6.0),
        "nostril_left": (ellipse(-0.48 * wing, tip + 0.9, 0.22 * wing, 0.95), 5.0),
        "nostril_right": (ellipse(0.48 * wing, tip + 0.9, 0.22 * wing, 0.95), 5.0),
    }
    return {name: surface(points, person.cheek_width, lift) for name, (points, lift) in parts.items()}


def mouth(person: IdentityParameters, nuisance: Nuisance) -> dict[str, np.ndarray]:
    """Returns upper lip, lower lip, the dark opening and, in an open mouth, the teeth."""
    width = person.mouth_width * (1.0 + 0.16 * max(nuisance.smile, 0.0) - 0.12 * nuisance.mouth_open)
    x, round_ = width * _ACROSS, _BULGE**0.7
    middle = person.mouth_height - 3.2 * nuisance.smile * (_ACROSS**2 - 0.35)
    gap = 6.5 * nuisance.mouth_open * _BULGE
    top = middle - 0.3 * gap - person.lip_upper * round_ + person.lip_bow * np.exp(-((_ACROSS / 0.18) ** 2))
    bottom = middle + 0.7 * gap + person.lip_lower * round_

    def band(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        points = np.concatenate([np.column_stack([x, upper]), np.column_stack([x, lower])[::-1]])
        return surface(points, person.cheek_width, 2.0)

    parts = {
        "opening": band(middle - 0.3 * gap, middle + 0.7 * gap),
        "upper_lip": band(top, middle - 0.3 * gap),
        "lower_lip": band(middle + 0.7 * gap, bottom),
        "line": surface(np.column_stack([x, middle - 0.3 * gap]), person.cheek_width, 2.0),
    }
    if nuisance.mouth_open > 0.2:
        parts["teeth"] = band(middle - 0.3 * gap, middle - 0.3 * gap + np.minimum(0.5 * gap, 1.8))
    return parts


def beard(person: IdentityParameters, face_n2: np.ndarray) -> np.ndarray:
    """Returns the lower face from ear to ear, bounded by a curve above the upper lip."""
    low = face_n2[(face_n2[:, 1] > 2.0)]
    x = np.linspace(low[:, 0].min(), low[:, 0].max(), 15)
    across = x / np.abs(x).max()
    top = np.where(
        np.abs(across) < 0.45, person.mouth_height - 6.5, person.mouth_height - 6.5 - 24.0 * (np.abs(across) - 0.45)
    )
    return surface(np.concatenate([np.column_stack([x, top]), low[np.argsort(-low[:, 0])]]) * 0.985, person.cheek_width)


def age_lines(person: IdentityParameters) -> dict[str, np.ndarray]:
    """Returns folds from the nose to the corners of the mouth, and two lines on the forehead."""
    start, end = person.eye_height + person.nose_length - 1.0, person.mouth_height + 2.0
    along = np.linspace(0.0, 1.0, 7)
    fold = np.column_stack(
        [
            person.nose_width + 2 + (person.mouth_width - person.nose_width + 1.5) * along**0.7,
            start + (end - start) * along,
        ]
    )
    parts = {"fold_right": fold, "fold_left": fold * [-1.0, 1.0]}
    for number, height in enumerate((-6.0, -10.5)):
        y = person.eye_height - person.brow_gap + height - 1.2 * _BULGE
        parts[f"forehead_{number}"] = np.column_stack([15.0 * _ACROSS, y])
    return {name: surface(points, person.cheek_width) for name, points in parts.items()}


def spots(spot_n3: np.ndarray, person: IdentityParameters) -> np.ndarray:
    """Maps centres of freckles or moles from the unit face to space."""
    height = np.where(spot_n3[:, 1] > 0, person.chin, person.forehead)
    return surface(np.column_stack([spot_n3[:, 0] * person.cheek_width, spot_n3[:, 1] * height]), person.cheek_width)


_OVER = np.linspace(np.pi * 1.04, np.pi * 1.96, 25)  # from the left temple over the crown to the right
_HAIR_ACROSS = np.linspace(-1.0, 1.0, 25)


def crown(person: IdentityParameters) -> np.ndarray:
    """Returns the upper contour of the hair [25, 2] from temple to temple."""
    volume = 0.8 if person.hair_style == "shaved" else person.hair_volume
    wave = 1.0 + 0.012 * person.hair_wave * np.sin(14 * _OVER + person.hair_phase)
    across = (person.cheek_width + 0.45 * volume) * np.sign(np.cos(_OVER)) * np.abs(np.cos(_OVER)) ** 0.8
    return np.column_stack([across * wave, (person.forehead + volume) * np.sin(_OVER) * wave])


def hair_line(person: IdentityParameters) -> np.ndarray:
    """Returns the hairline on the forehead [25, 2], from temple to temple, in the shape of the style."""
    x = 0.97 * person.cheek_width * np.sign(_HAIR_ACROSS) * np.abs(_HAIR_ACROSS) ** 0.7
    temple, line = -10.0, person.hair_line
    if person.hair_style == "fringe":
        rise = np.full(25, line + 7.5) + 1.3 * np.sin(9 * _HAIR_ACROSS + person.hair_phase)
    elif person.hair_style == "parted":
        rise = line - 6.0 + 13.0 * np.abs(_HAIR_ACROSS - 0.5 * person.hair_parting) ** 0.9
    elif person.hair_style == "swept":
        rise = line + 7.0 * np.sign(person.hair_parting) * _HAIR_ACROSS + 3.0 * np.cos(2.5 * _HAIR_ACROSS)
    else:  # receding and shaved: high at the corners, lower in the middle
        rise = line - 5.0 + 3.5 * np.cos(3 * np.pi * _HAIR_ACROSS) * (np.abs(_HAIR_ACROSS) < 0.7)
    edge = np.abs(_HAIR_ACROSS) ** 5
    y = (1 - edge) * np.maximum(rise, -person.forehead) + edge * temple
    return np.column_stack([x, y])


def cap(person: IdentityParameters) -> np.ndarray:
    """Returns the hair in front [50, 3], between crown and hairline."""
    return np.concatenate([_crown_3(person), _line_3(person)[::-1]])


def strands(person: IdentityParameters, count: int = 5) -> np.ndarray:
    """Returns lines [count, 25, 3] inside the cap along the hair."""
    share = np.linspace(0.15, 0.88, count)[:, None, None]
    return (1 - share) * _line_3(person) + share * _crown_3(person)


def back_hair(person: IdentityParameters) -> np.ndarray:
    """Returns the hair behind the face [m, 3], down to the ears if cropped, to the shoulders if long."""
    over = crown(person)
    end = -6.0 + 72.0 * person.hair_length
    drop = np.linspace(0.0, 1.0, 12)
    wave = 1.6 * person.hair_wave * np.sin(9 * drop + person.hair_phase) * drop
    width = person.cheek_width + 0.45 * person.hair_volume + 3.0 * person.hair_length * drop + wave
    right = np.column_stack([width, over[-1, 1] + (end - over[-1, 1]) * drop])
    left = right[::-1] * [-1.0, 1.0]
    contour = np.concatenate([over, right, left])
    return np.column_stack([contour, np.full(len(contour), -10.0)])


def _crown_3(person: IdentityParameters) -> np.ndarray:
    over = crown(person)
    return np.column_stack([over, np.full(len(over), -4.0)])


def _line_3(person: IdentityParameters) -> np.ndarray:
    return surface(hair_line(person), person.cheek_width, 1.0)
