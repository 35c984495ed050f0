"""Comparison of models in a MegaFace report: differences in words, as signed points, and as a CSV table."""

from collections.abc import Mapping
from math import isnan
from typing import Any

from facelt.report.formatting import points, points_interval, undecided_text
from facelt.report.megaface_schema import ComparisonSection, PairedFigure
from facelt.utils.tables import Table


def difference_sentence(row: Mapping[str, Any], reference: str, level: float) -> str:
    """Returns the difference of all probes in words; `row` has the values of a ComparisonRow but for its sentence.

    `oltr direct is 3.8 points above plain direct at rank 1, 95% interval 1.2 to 6.4`; an undecided one says so and
    names the number of identities, and its adjusted limits if the interval alone would suggest otherwise.
    """
    figure = next(figure for figure in row["figures"] if figure["group"] == "all")
    name, low, high = f"{row['model']} {row['kind']}", figure["low"], figure["high"]
    if figure["p"] is None:
        return f"{name} cannot be compared with {reference} at rank {row['rank']}: there are no pairs"
    size = points(abs(figure["difference"]))
    side = "above" if figure["difference"] > 0 else "below"
    relation = f"equal to {reference}" if size == "0" else f"{size} points {side} {reference}"
    ends = "no interval" if isnan(low) else f"{100 * level:g}% interval {points_interval(low, high)}"
    sentence = f"{name} is {relation} at rank {row['rank']}, {ends}"
    if figure["decided"]:
        return sentence
    if low > 0 or high < 0:
        adjusted = points_interval(figure["adjusted_low"], figure["adjusted_high"])
        sentence += f", adjusted for all differences {adjusted}"
    return f"{sentence}: {undecided_text(figure['smallest_p'], figure['identities'], level)}"


def comparison_table(section: ComparisonSection) -> Table:
    """Returns all differences as a CSV table, one row per model, kind, rank and group."""
    row_keys = ("model", "kind", "rank", "distractors")
    figure_keys = tuple(PairedFigure.model_fields)
    rows = [
        [section.reference, section.kind, *(getattr(row, key) for key in row_keys),
         *(getattr(figure, key) for key in figure_keys)]
        for row in section.rows
        for figure in row.figures
    ]  # fmt: skip
    return Table(("reference", "reference_kind", *row_keys, *figure_keys), rows)
