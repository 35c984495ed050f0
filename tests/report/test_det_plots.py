"""DET curves: position, faint unsupported parts, escaped names, and zeros on logarithmic axes."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from facelt.report.drawing import Style
from facelt.report.plots import TradeoffCurve, det_plot, dir_plot, open_set_plot, tradeoff_plot


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def lines(svg, colour):
    """Returns the points of each stroked path of `colour`, with its opacity; filled markers are left out."""
    result = []
    for path in ElementTree.fromstring(svg).iter("path"):
        style = path.get("style", "")
        if f"stroke: {colour}" in style and "fill: none" in style:
            numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
            opacity = float((re.search(r"stroke-opacity: ([\d.]+)", style) or [0, 1])[1])
            result.append((list(zip(numbers[::2], numbers[1::2], strict=True)), opacity))
    return result


def curve(**changes):
    values = {
        "label": "plain", "x": [1e-5, 1e-4, 1e-3, 1e-2], "y": [0.8, 0.4, 0.2, 0.1],
        "points": [(1e-3, 0.2), (1e-6, None)], "style": Style("#123456"),
    }  # fmt: skip
    return TradeoffCurve(**{**values, **changes})


def plot(*curves):
    return tradeoff_plot(curves, x_label="FMR (%)", y_label="FNMR (%)", description="curves")


def test_a_line_runs_through_its_rates_on_two_logarithmic_axes():
    svg = plot(curve())
    ((points, opacity),) = [line for line in lines(svg, "#123456") if len(line[0]) == 4]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(points)]
    assert opacity == 1
    # A decade of FMR and a halving of FNMR at each step.
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)
    assert {"0.001", "0.01", "0.1", "1", "FMR (%)", "FNMR (%)"} <= set(texts(svg))


def test_a_short_axis_has_labels_as_well():
    # Neither a decade nor a 2 or a 5 but 20 lies between 18 and 28 percent.
    shown = texts(plot(curve(y=[0.28, 0.25, 0.22, 0.18], points=[])))
    assert sum(18 * 0.8 < float(text) < 28 * 1.2 for text in shown if text.isdigit()) >= 3


def test_what_the_trials_do_not_support_is_faint():
    svg = plot(curve(supported_from=1e-3))
    drawn = {len(points): opacity for points, opacity in lines(svg, "#123456")}
    assert drawn == {3: 0.4, 2: 1.0}
    figure = det_plot([curve(supported_from=1e-3)])
    assert "Faint: fewer than 30 errors expected among the non-mated pairs." in figure.caption
    assert "Faint" not in det_plot([curve(supported_from=1e-6)]).caption


def test_zero_is_left_out():
    svg = plot(curve(x=[0.0, 1e-4, 1e-3, 1e-2, 1.0], y=[1.0, 0.4, 0.2, 0.1, 0.0], points=[(1e-3, 0.0)]))
    assert [len(points) for points, opacity in lines(svg, "#123456") if opacity == 1] == [3]
    assert "nan" not in svg.lower()
    assert "inf" not in svg.lower()


def test_a_figure_has_its_numbers_as_text():
    figure = det_plot([curve(), curve(label="oltr", points=[(1e-2, 0.05)], style=Style(look=1))])
    assert figure.header == ("", "FNMR (%) at FMR 1 %", "FNMR (%) at FMR 0.1 %", "FNMR (%) at FMR 0.0001 %")
    assert figure.data == (("plain", "–", "20.00", "–"), ("oltr", "5.00", "–", "–"))  # noqa: RUF001
    assert [series.label for series in figure.series] == ["plain", "oltr"]
    assert figure.series[0].x == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    label = ElementTree.fromstring(figure.svg).get("aria-label")
    assert "plain: FNMR 20.00 percent at FMR 0.1 percent, FNMR not measured at FMR 0.0001 percent" in label


def test_open_set_states_its_rank():
    figure = open_set_plot([curve()], rank=5)
    assert "rank 5" in figure.caption
    assert "false positive identification rate, FPIR (%)" in texts(figure.svg)
    assert figure.header[1] == "FNIR (%) at FPIR 0.1 %"


@pytest.mark.parametrize(
    "curves", [[], [curve(x=[], y=[], points=[(0.1, None)])], [curve(x=[1.0], y=[0.0], points=[])]]
)
def test_a_missing_curve_is_reported(curves):
    figure = det_plot(curves)
    assert "no curve: too few trials" in texts(figure.svg)


def test_a_single_point_and_hostile_names_are_drawn():
    name = "<script>alert(1)</script>$\\frac{$\x00"
    figure = open_set_plot([curve(label=name, x=[0.1], y=[0.5], points=[])])
    root = ElementTree.fromstring(figure.svg)
    assert not list(root.iter("script"))
    assert "no operating points" in root.get("aria-label")
    assert "\x00" not in figure.svg


def test_dir_is_drawn_on_a_linear_axis_with_its_zeros():
    plot = dir_plot([curve(x=[1e-3, 1e-2, 1e-1, 1.0], y=[0.0, 0.25, 0.5, 1.0], points=[(1e-3, 0.0)])])
    drawn = [points for points, _ in lines(plot.svg, "#123456")]
    (line,) = [points for points in drawn if len(points) == 4]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = line
    assert [(x2 - x1) / (x1 - x0), (x3 - x2) / (x1 - x0)] == pytest.approx([1, 1], rel=1e-3)
    assert [(y2 - y1) / (y1 - y0), (y3 - y2) / (y1 - y0)] == pytest.approx([1, 2], rel=1e-3)
    assert {"0", "20", "100", "0.1", "1", "10"} <= set(texts(plot.svg))
    assert plot.header == ("", "DIR (%) at FAR 0.1 %")
    assert plot.data == (("plain", "0.00"),)
    assert "Higher is better" in plot.caption
