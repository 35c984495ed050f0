"""How hard the synthetic faces are, all constants in one place."""

from dataclasses import dataclass, replace

from facelt.errors import UserError


@dataclass(frozen=True)
class Difficulty:
    """Spread of every nuisance; identity's own spread stays as `identity.py` has it, so these alone set the difficulty.

    The demo wants rank-1 between 50% and 95% against about a thousand distractors after a minute or two of training a
    small network, and identity to be read from shape and texture, not from mean colour: backdrop, clothes and light
    move colour more than faces differ in it. As measured with 400 training identities and 12,000 pictures seen at
    half size, a narrow nine-layer residual network reached rank-1 of 67% against 1,000 distractors (48% with spreads
    about a third larger), nearest 8x8 thumbnails 6%. Raise the spreads, or the shares of covered and grey images, to
    make the task harder. Angles are in degrees, lengths in pixels of a 112-pixel crop, shares in [0, 1]; a spread is
    a standard deviation unless its comment says otherwise.
    """

    # pose
    yaw: float = 5.5
    pitch: float = 2.5
    roll: float = 1.5
    shift: float = 0.6
    scale: float = 0.012
    # light
    side_light: float = 0.22  # how far the light's direction leaves the camera's
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
        """The same mixture with every spread and share times `factor` (0: a studio portrait); shares stay below 1/5."""
        if not 0.0 <= factor <= 4.0:
            raise UserError(f"synthetic faces: a difficulty's factor lies in 0..4, not {factor!r}")
        values = {name: value * factor for name, value in vars(self).items() if name != "jpeg_lowest"}
        values |= {name: min(value, 0.2) for name, value in values.items() if name.endswith("_share")}
        return replace(self, jpeg_lowest=round(95 - (95 - self.jpeg_lowest) * min(factor, 2.0)), **values)


DEMO = Difficulty()
STUDIO = DEMO.scaled(0.0)
