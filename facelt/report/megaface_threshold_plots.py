"""The curves behind a MegaFace report's rates at thresholds: DET, and FNIR over FPIR."""

from collections.abc import Mapping

from facelt.report.det_plots import Tradeoff, det_figure, open_set_figure
from facelt.report.megaface_plots import Figure
from facelt.report.megaface_thresholds import Rates, open_set, verification


def figures(report: dict, styles: Mapping) -> list[Figure]:
    """The plots of what was measured, in the order of the page."""
    drawn = []
    if table := verification(report, styles):
        drawn.append(_det_plot(report["verification"], table))
    if table := open_set(report, styles):
        drawn.append(_open_set_plot(report["open_set"], table))
    return drawn


def _det_plot(section: dict, table: Rates) -> Figure:
    curves = [
        Tradeoff(
            row.label, one["det"]["fmr"], one["det"]["fnmr"],
            [(point["wanted"], None if point["tar"] is None else 1 - point["tar"]) for point in one["points"]],
            section["smallest_far"], row.style,
        )
        for one, row in zip(section["rates"], table.rows, strict=True)
    ]  # fmt: skip
    return det_figure(curves, title="Verification: detection error trade-off")


def _open_set_plot(section: dict, table: Rates) -> Figure:
    curves = [
        Tradeoff(
            row.label, one["curve"]["fpir"], one["curve"]["fnir"],
            [(point["wanted"], point["fnir"]) for point in one["points"]], section["smallest_fpir"], row.style,
        )
        for one, row in zip(section["rates"], table.rows, strict=True)
    ]  # fmt: skip
    return open_set_figure(curves, rank=section["rank"])
