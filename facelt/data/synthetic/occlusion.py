"""Things in front of a face: glasses, a bar, a hand."""

import numpy as np

from facelt.data.synthetic.canvas import Canvas
from facelt.data.synthetic.features import ellipse, surface
from facelt.data.synthetic.identity import IdentityParameters
from facelt.data.synthetic.nuisance import Nuisance


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
