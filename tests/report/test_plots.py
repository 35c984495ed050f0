"""Plots: shapes equal the data; the SVG is safe and readable by screen readers."""

import re
from xml.etree import ElementTree

import pytest

from facelt.report.drawing import MARKERS, PALETTE, Series, Style, assign_styles
from facelt.report.plots import bar_plot, dot_plot, line_plot
from facelt.utils.text import shorten


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def shapes(svg, colour):
    """Returns the points of each stroked path of `colour`, as lists of (x, y)."""
    result = []
    for path in ElementTree.fromstring(svg).iter("path"):
        if colour in path.get("style", ""):
            numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
            result.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return result


def test_bars_are_as_high_as_their_rates_and_a_gap_is_a_dash():
    series = [Series("a", [80.0, 40.0, None], [70, 30, None], [90, 50, None], style=Style("#123456"))]
    svg = bar_plot(series, ["many", "few", "one"], y_label="rate", description="bars")
    heights = sorted(max(y for _, y in bar) - min(y for _, y in bar) for bar in shapes(svg, "fill: #123456"))
    heights = [height for height in heights if height > 0]
    assert len(heights) == 2
    assert heights[1] / heights[0] == pytest.approx(2, rel=1e-3)
    assert texts(svg).count("\N{EN DASH}") == 1
    assert {"many", "few", "one", "rate"} <= set(texts(svg))


def test_a_line_runs_through_its_rates_on_a_logarithmic_axis():
    series = [Series("a", [90.0, 80.0, 60.0], x=[10, 100, 10_000], style=Style("#123456"))]
    svg = line_plot(series, x_label="distractors", y_label="rate", description="line", log_x=True)
    (line,) = [shape for shape in shapes(svg, "stroke: #123456") if len(shape) == 3]
    (x0, y0), (x1, y1), (x2, y2) = line
    assert (x2 - x1) / (x1 - x0) == pytest.approx(2, rel=1e-3)
    assert (y2 - y1) / (y1 - y0) == pytest.approx(2, rel=1e-3)
    assert {"10", "100", "10,000"} <= set(texts(svg))


def test_an_interval_of_a_dot_spans_its_ends():
    series = [Series("a", [50.0, 70.0], [40.0, 60.0], [60.0, 90.0], style=Style("#123456"))]
    svg = dot_plot(series, ["male", "female"], x_label="rate", description="dots")
    widths = [abs(line[1][0] - line[0][0]) for line in shapes(svg, "stroke: #123456") if len(line) == 2]
    assert len(widths) == 2
    assert widths[1] / widths[0] == pytest.approx(1.5, rel=1e-3)


def test_a_rate_outside_its_interval_and_a_missing_interval_are_drawn():
    series = [Series("a", [50.0, 50.0], [60.0, None], [70.0, None])]
    assert "<svg" in bar_plot(series, ["x", "y"], y_label="rate", description="odd")


def test_two_drawings_share_no_id_and_each_has_its_references():
    series = [Series("a", [1.0, 2.0], [0.5, 1.0], [2.0, 3.0], x=[1, 2], style=Style(look=1))]
    drawings = [
        line_plot(series, x_label="x", y_label="y", description="first"),
        line_plot(series, x_label="x", y_label="y", description="second"),
        bar_plot(series, ["x", "y"], y_label="y", description="third"),
    ]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawings]
    assert all(ids)
    assert len(set().union(*ids)) == sum(map(len, ids))
    for own, svg in zip(ids, drawings, strict=True):
        used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
        assert used
        assert used <= own


def test_equal_input_gives_equal_bytes_without_an_address():
    series = [Series("a", [1.0, 2.0], x=[1, 2])]
    first, second = (line_plot(series, x_label="x", y_label="y", description="d") for _ in range(2))
    assert first == second
    assert "http" not in first
    assert "<metadata" not in first


def test_hostile_names_stay_text():
    name = "<script>alert(1)</script>"
    odd = "$\\frac{$\x00\x1b"
    svg = dot_plot([Series(name, [1.0, 2.0])], [name, odd], x_label=odd, description=name + odd)
    root = ElementTree.fromstring(svg)
    assert not list(root.iter("script"))
    assert shorten(name) in texts(svg)
    assert "$\\frac{$\ufffd\ufffd" in texts(svg)
    assert root.get("aria-label") == name + "$\\frac{$\ufffd\ufffd"
    assert root.get("role") == "img"


def test_long_names_are_cut():
    assert shorten("x" * 100) == "x" * 25 + "…"
    assert shorten("x" * 26) == "x" * 26


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (2, 3), (5, 3), (7, 4)])
def test_no_two_series_look_the_same(shape):
    models, kinds = shape
    pairs = [(f"m{model}", f"k{kind}") for model in range(models) for kind in range(kinds)]
    styles = assign_styles(pairs)
    assert len(set(styles.values())) == len(pairs)
    if len(pairs) > len(PALETTE):
        assert len({styles["m0", f"k{kind}"].colour for kind in range(kinds)}) == 1


def test_more_series_than_looks_still_get_one():
    pairs = [(f"m{model}", "direct") for model in range(20)]
    styles = assign_styles(pairs)
    assert len(set(styles.values())) == 20
    assert all(style.marker in MARKERS for style in styles.values())
