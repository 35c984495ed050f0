"""Matplotlib drawings: inline SVG for HTML pages, SVG and PNG files, the style of each series.

Inline SVG carries no metadata and no URLs, and its ids are unique within the page. matplotlib is imported on
first use.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from xml.etree import ElementTree

from facelt.utils.text import sanitize
from recordio_tools.atomic_io import atomic_replace

INK, MUTED, GRID = "#1b1f24", "#57606a", "#e3e7eb"

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text for screen readers, search and copying
    "text.parse_math": False,  # dollar signs in names are no formula
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
def inline_figure(width: float, height: float, description: str) -> Iterator[SimpleNamespace]:
    """Yields a page with `axes` of `width` by `height` inches; on exit its `svg` holds the drawing.

    `description` is the text for screen readers.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Ids are the same in each run and differ between the drawings of a page.
    salt = hashlib.sha256(description.encode()).hexdigest()[:8]
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The browser has glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        page = SimpleNamespace(axes=figure.add_subplot(), svg="")
        yield page
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        page.svg = _inline_svg(buffer.getvalue(), f"p{salt}", description)


def _inline_svg(source: bytes, prefix: str, description: str) -> str:
    """Returns matplotlib's SVG as an <svg> element that the page sizes; `prefix` is put before every id."""
    root = ElementTree.fromstring(source)
    for element in list(root):
        if element.tag.endswith("}metadata"):
            root.remove(element)
    for element in root.iter():
        # HTML needs no namespaces, and without them the page holds no URL.
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


_DPI = 150


@contextmanager
def figure_files(
    width: float, height: float, path: Path, *, rows: int = 1, columns: int = 1
) -> Iterator[SimpleNamespace]:
    """Yields a page with a `figure` of `width` by `height` inches and its `axes` [rows, columns].

    On exit path.svg and path.png are written; equal drawings give equal files. Raises UserError if they cannot be
    written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings = {**_SETTINGS, "svg.hashsalt": path.name, "figure.facecolor": "white"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield SimpleNamespace(figure=figure, axes=figure.subplots(rows, columns, squeeze=False))
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=suffix[1:], dpi=_DPI, metadata=metadata)
            with atomic_replace(path.with_name(path.name + suffix), "choose another folder with --out") as temporary:
                temporary.write_bytes(drawn.getvalue())


# Okabe and Ito's colour-blind-safe palette without its yellow, which is too light on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#9b4f82", "#b07a00", "#3a9bd1", "#4d4d4d")

# Kinds differ in more than colour, for pages printed in grey. The names are matplotlib's.
MARKERS = ("o", "s", "^", "D")
DASHES = ((0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
HATCHES = ("", "////", "....", "xx")


@dataclass(frozen=True)
class Style:
    """Look of one series: a colour, and the index of its marker, dash and hatch."""

    colour: str = PALETTE[0]
    look: int = 0

    @property
    def marker(self) -> str:
        """matplotlib's marker."""
        return MARKERS[self.look]

    @property
    def dash(self) -> tuple | str:
        """matplotlib's line style; "solid" by name, since an empty dash list is invalid SVG."""
        return DASHES[self.look] if DASHES[self.look][1] else "solid"

    @property
    def hatch(self) -> str:
        """matplotlib's hatch."""
        return HATCHES[self.look]

    @property
    def dash_array(self) -> str:
        """The same line style as SVG's stroke-dasharray, for the key."""
        return " ".join(str(length) for length in DASHES[self.look][1]) or "none"


@dataclass(frozen=True)
class Series:
    """Rates in percent at positions `x` (or at categories in order), with interval ends; None is a gap."""

    label: str
    rate: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    x: Sequence[float] = ()
    style: Style = field(default_factory=Style)


Styles = Mapping[tuple[str, str], Style]


def assign_styles(pairs: Sequence[tuple[str, str]]) -> Styles:
    """Returns a style for each (model, kind): marker, dash and hatch by kind, and a colour each for up to 7 series.

    With more series each model has one colour. Beyond 7 models or 4 kinds looks repeat, shifted so that colour and
    marker together differ for as long as possible.
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
    """A plot of the page: `svg` is safe markup; `header` and `data` are the table of its numbers."""

    title: str
    caption: str
    svg: str
    series: tuple[Series, ...]
    header: tuple[str, ...]
    data: tuple[tuple[str, ...], ...]
