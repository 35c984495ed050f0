"""From a matplotlib figure to SVG that stands inside a page: no metadata, no address, no name used twice.

Drawings that are files: the same one as SVG and as PNG.

What a plot draws: one series for each model and embedding kind, and how it looks in every plot of a page.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from xml.etree import ElementTree

from facelt.utils.text import sanitize
from recordio_tools.atomic_io import atomic_replace

INK, MUTED, GRID = "#1b1f24", "#57606a", "#e3e7eb"

SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
    "text.parse_math": False,  # a name with two dollar signs is a name, not a formula
    "font.family": "sans-serif",
    "font.size": 12.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8b949e",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "hatch.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def drawing(width: float, height: float, description: str) -> Iterator[SimpleNamespace]:
    """A figure of `width` by `height` inches to draw on: yields `axes`, and holds `svg` once the block is left."""
    import matplotlib
    from matplotlib.figure import Figure

    # The same drawing gets the same names in each run, different drawings of a page different ones.
    salt = hashlib.sha256(description.encode()).hexdigest()[:8]
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The browser has letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        page = SimpleNamespace(axes=figure.add_subplot(), svg="")
        yield page
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        page.svg = inline_svg(buffer.getvalue(), f"p{salt}", description)


def inline_svg(source: bytes, prefix: str, description: str) -> str:
    """The drawing as an <svg> element for an HTML page, sized by the page and named for screen readers.

    Args:
        source: SVG as matplotlib writes it.
        prefix: put before every id, so that two drawings of one page never share one.
        description: what a screen reader says in its place.
    """
    root = ElementTree.fromstring(source)
    for element in list(root):
        if element.tag.endswith("}metadata"):
            root.remove(element)
    for element in root.iter():
        # HTML knows svg by itself; without the namespaces no address is left in the page.
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            element.set(name.rpartition("}")[2], _prefixed(name.rpartition("}")[2], value, prefix))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", sanitize(description))
    return ElementTree.tostring(root, encoding="unicode")


def _prefixed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return re.sub(r"^#", f"#{prefix}-", value)
    return re.sub(r"url\(#", f"url(#{prefix}-", value)


DOTS_PER_INCH = 150


@contextmanager
def picture(width: float, height: float, path: Path, *, rows: int = 1, columns: int = 1) -> Iterator[SimpleNamespace]:
    """A figure of `width` by `height` inches: yields its `axes` [rows, columns], an array, and the `figure` itself.

    Once the block is left, path.svg and path.png are there. Equal drawings are equal files. Raises UserError where they
    cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings = {**SETTINGS, "svg.hashsalt": path.name, "figure.facecolor": "white"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield SimpleNamespace(figure=figure, axes=figure.subplots(rows, columns, squeeze=False))
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=suffix[1:], dpi=DOTS_PER_INCH, metadata=metadata)
            with atomic_replace(path.with_name(path.name + suffix), "choose another folder with --out") as temporary:
                temporary.write_bytes(drawn.getvalue())


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


@dataclass(frozen=True)
class Plot:
    """A plot for the page: `svg` is safe markup, `data` the numbers behind it as (header, rows of text)."""

    title: str
    caption: str
    svg: str
    series: tuple[Series, ...]
    header: tuple[str, ...]
    data: tuple[tuple[str, ...], ...]
