"""Drawings that are files: the same one as SVG and as PNG."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from facelt.report.svg import SETTINGS
from facelt.whole_files import replacing

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
            with replacing(path.with_name(path.name + suffix), "choose another folder with --out") as temporary:
                temporary.write_bytes(drawn.getvalue())
