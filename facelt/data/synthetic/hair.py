"""Hair as curves in space: the mass behind the head, the cap above the hairline, and strands between the two."""

import numpy as np

from facelt.data.synthetic.features import surface
from facelt.data.synthetic.identity import IdentityParameters

_OVER = np.linspace(np.pi * 1.04, np.pi * 1.96, 25)  # from the left temple over the crown to the right
_ACROSS = np.linspace(-1.0, 1.0, 25)


def crown(who: IdentityParameters) -> np.ndarray:
    """The hair's upper contour [25, 2] from temple to temple."""
    volume = 0.8 if who.hair_style == "shaved" else who.hair_volume
    wave = 1.0 + 0.012 * who.hair_wave * np.sin(14 * _OVER + who.hair_phase)
    across = (who.cheek_width + 0.45 * volume) * np.sign(np.cos(_OVER)) * np.abs(np.cos(_OVER)) ** 0.8
    return np.column_stack([across * wave, (who.forehead + volume) * np.sin(_OVER) * wave])


def hair_line(who: IdentityParameters) -> np.ndarray:
    """Where the hair ends on the forehead [25, 2], from temple to temple, in the style's shape."""
    x = 0.97 * who.cheek_width * np.sign(_ACROSS) * np.abs(_ACROSS) ** 0.7
    temple, line = -10.0, who.hair_line
    if who.hair_style == "fringe":
        rise = np.full(25, line + 7.5) + 1.3 * np.sin(9 * _ACROSS + who.hair_phase)
    elif who.hair_style == "parted":
        rise = line - 6.0 + 13.0 * np.abs(_ACROSS - 0.5 * who.hair_parting) ** 0.9
    elif who.hair_style == "swept":
        rise = line + 7.0 * np.sign(who.hair_parting) * _ACROSS + 3.0 * np.cos(2.5 * _ACROSS)
    else:  # receding and shaved: high at the corners, lower in the middle
        rise = line - 5.0 + 3.5 * np.cos(3 * np.pi * _ACROSS) * (np.abs(_ACROSS) < 0.7)
    edge = np.abs(_ACROSS) ** 5
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
