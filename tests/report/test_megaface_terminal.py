"""MegaFace report on the terminal: the paper's columns, 80 and 120 characters wide."""

import io

import pytest
from rich.console import Console

from facelt.report.megaface_schema import MegafaceReport
from facelt.report.megaface_terminal import print_megaface


def printed(report, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_megaface(MegafaceReport.build(report), console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_columns_have_the_papers_order_within_the_width(report, width):
    text = printed(report, width)
    assert all(len(line) <= width for line in text.splitlines())
    (heading,) = [line for line in text.splitlines() if "Many" in line]
    assert heading.split()[-7:] == ["Many", "Few", "One", "Zero", "Full", "Male", "Female"]


def test_rates_have_two_decimals_and_an_empty_band_is_a_dash(report):
    lines = printed(report, 80).splitlines()
    first = next(index for index, line in enumerate(lines) if line.split()[:1] == ["plain"])
    assert lines[first].split() == ["plain", "-", "69.32", "75.11", "83.07", "83.02", "87.12", "78.42"]
    assert lines[first + 1].split() == ["direct", "78.0\N{EN DASH}88.0"]


def test_a_wide_terminal_has_every_interval(report):
    lines = printed(report, 120).splitlines()
    first = next(index for index, line in enumerate(lines) if line.split()[:1] == ["plain"])
    assert len(lines[first + 1].split()) == 1 + 6


def test_equal_counts_are_listed_once_below_the_table(report):
    text = printed(report, 80)
    (pairs,) = [line for line in text.splitlines() if line.split()[:1] == ["pairs"] and "26,202" in line]
    assert pairs.split() == ["pairs", "0", "880", "1,000", "24,322", "26,202", "13,860", "12,342"]


def test_counts_that_differ_name_their_rows(report):
    for row in report["rows"][1:]:
        row["figures"][2] = {**row["figures"][2], "pairs": 123_456}
    text = printed(report, 120)
    assert "pairs (plain)" in text
    assert "pairs (oltr)" in text
    assert "123k" in text


def test_other_groups_follow_in_tables_that_fit(report):
    for row in report["rows"]:
        row["figures"] += [{**row["figures"][-1], "name": f"band {number}"} for number in range(12)]
    text = printed(report, 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.index("Female") < text.index("under 40")
    assert all(f"band {number}" in text for number in range(12))


def test_names_are_no_markup_and_no_control_code(hostile):
    text = printed(hostile, 120)
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "[red]" in text
