"""From a matplotlib figure to SVG that stands inside a page: no metadata, no address, no name used twice."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from xml.etree import ElementTree

from facelt.report.visible import visible

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
    root.set("aria-label", visible(description))
    return ElementTree.tostring(root, encoding="unicode")


def _prefixed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return re.sub(r"^#", f"#{prefix}-", value)
    return re.sub(r"url\(#", f"url(#{prefix}-", value)
