"""What a plot draws: one series for each model and embedding kind, and how it looks in every plot of a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

# Okabe and Ito's palette, told apart with every common colour blindness; the yellow is too light on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#9b4f82", "#b07a00", "#3a9bd1", "#4d4d4d")

# One look for each kind beside the colour, so that a page printed in grey still tells them apart. The names are
# matplotlib's; `dash_array` is the same line for a key drawn by hand.
MARKERS = ("o", "s", "^", "D")
DASHES = ((0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
HATCHES = ("", "////", "....", "xx")


@dataclass(frozen=True)
class Style:
    """The look of one series: a colour, and the index of its marker, dash and hatch."""

    colour: str = PALETTE[0]
    look: int = 0

    @property
    def marker(self) -> str:
        """matplotlib's marker."""
        return MARKERS[self.look]

    @property
    def dash(self) -> tuple | str:
        """matplotlib's line style; the solid one by its name, which leaves no empty dash list in an SVG."""
        return DASHES[self.look] if DASHES[self.look][1] else "solid"

    @property
    def hatch(self) -> str:
        """matplotlib's hatch."""
        return HATCHES[self.look]

    @property
    def dash_array(self) -> str:
        """The line style as SVG's stroke-dasharray."""
        return " ".join(str(length) for length in DASHES[self.look][1]) or "none"


@dataclass(frozen=True)
class Series:
    """Rates in percent at the places `x` (or at categories in their order), with interval ends; None is a gap."""

    label: str
    rate: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    x: Sequence[float] = ()
    style: Style = field(default_factory=Style)


def assign_styles(pairs: Sequence[tuple[str, str]]) -> MappingProxyType:
    """A style for each (model, kind): marker, dash and hatch by kind, a colour each while there are enough.

    With more than 7 series the colour tells the model. Beyond 7 models or 4 kinds looks repeat, shifted so that colour
    and marker together differ as long as they can.
    """
    pairs = list(dict.fromkeys(pairs))
    models = list(dict.fromkeys(model for model, _ in pairs))
    kinds = list(dict.fromkeys(kind for _, kind in pairs))
    styles = {}
    for index, (model, kind) in enumerate(pairs):
        by_model, by_kind = models.index(model), kinds.index(kind)
        colour = index if len(pairs) <= len(PALETTE) else by_model
        look = (by_kind + by_model // len(PALETTE)) % len(MARKERS)
        styles[model, kind] = Style(PALETTE[colour % len(PALETTE)], look)
    return MappingProxyType(styles)
