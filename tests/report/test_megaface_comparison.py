"""Comparison of models in a MegaFace report: sentences, page, terminal tables, and the CSV table."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from facelt.report.formatting import points_interval, signed_points
from facelt.report.megaface_comparison import difference_sentence
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.megaface_terminal import print_megaface
from facelt.report.write import write_report


def sentence(difference, low, high, *, decided=False, identities=14, p=0.5, rank=1, level=0.95, smallest=0.001):
    figure = {"group": "all", "difference": difference, "low": low, "high": high, "identities": identities}
    adjusted = {"adjusted_low": low - 0.01, "adjusted_high": high + 0.01, "smallest_p": smallest}
    figure |= {"p": p, "adjusted_p": p, "decided": decided, **adjusted}
    row = {"model": "oltr", "kind": "direct", "rank": rank, "figures": [{"group": "shots"}, figure]}
    return difference_sentence(row, "plain_long direct", level)


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (
            (0.0381, 0.0119, 0.0642),
            {"decided": True},
            "oltr direct is 3.8 points above plain_long direct at rank 1, 95% interval 1.2 to 6.4",
        ),
        (
            (-0.006, -0.021, 0.009),
            {},
            "oltr direct is 0.6 points below plain_long direct at rank 1, 95% interval -2.1 to 0.9: undecided at 14 "
            "identities",
        ),
        (
            (0.03, 0.001, 0.06),
            {"p": 0.1234, "rank": 5, "identities": 1234},
            "oltr direct is 3.0 points above plain_long direct at rank 5, 95% interval 0.1 to 6.0, adjusted for "
            "all differences -0.9 to 7.0: undecided at 1,234 identities",
        ),
        (
            (-0.000412, -0.00077, -0.0001234),
            {"decided": True, "level": 0.999},
            "oltr direct is 0.041 points below plain_long direct at rank 1, 99.9% interval -0.1 to -0.012",
        ),
        (
            (0.0, -0.01, 0.01),
            {"p": 1.0},
            "oltr direct is equal to plain_long direct at rank 1, 95% interval -1.0 to 1.0: undecided at 14 identities",
        ),
        (
            (0.25, NAN, NAN),
            {"identities": 1, "smallest": 1.0},
            "oltr direct is 25.0 points above plain_long direct at rank 1, no interval: undecidable with 1 identity "
            "(the smallest adjusted p they can reach is 1)",
        ),
        (
            (0.25, 0.1, 0.4),
            {"identities": 5, "smallest": 0.0765},
            "oltr direct is 25.0 points above plain_long direct at rank 1, 95% interval 10.0 to 40.0, adjusted for all "
            "differences 9.0 to 41.0: undecidable with 5 identities (the smallest adjusted p they can reach is 0.076)",
        ),
        (
            (NAN, NAN, NAN),
            {"p": None, "identities": 0},
            "oltr direct cannot be compared with plain_long direct at rank 1: there are no pairs",
        ),
    ],
)
def test_sentences(values, options, expected):
    assert sentence(*values, **options) == expected


def test_points_have_signs_and_no_negative_zero():
    assert [signed_points(value) for value in (0.038, -0.006, 0.0, -0.00001, 1e-9, None)] == [
        "+3.80", "-0.60", "0.00", "0.00", "0.00", "\N{EN DASH}",
    ]  # fmt: skip
    assert points_interval(-0.0211, 0.0094) == "-2.1 to 0.9"
    assert points_interval(-0.0003, 0.0) == "-0.03 to 0"
    assert points_interval(None, 0.1) == ""


class Cells(HTMLParser):
    """Collects the texts of the bold differences, and the whole visible text."""

    def __init__(self, source):
        super().__init__()
        self.bold, self.plain, self.text, self.into = [], [], "", None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if dict(attrs).get("class") == "difference":
            self.into = self.bold if tag == "b" else self.plain

    def handle_data(self, data):
        self.text += data
        if self.into is not None:
            self.into.append(data)
            self.into = None


def test_the_page_has_the_sentences_near_the_top_and_decided_differences_in_bold(compared, tmp_path):
    source = write_report(MegafaceReport.build(compared), tmp_path).read_text(encoding="utf-8")
    cells = Cells(source)
    assert cells.bold == ["+3.82", "+7.10", "+7.10"]
    assert cells.plain == ["+1.91", "0.00", "+25.00", "-0.31", "-0.62", "0.00", "+25.00"]
    text = " ".join(cells.text.split())
    for row in compared["comparison"]["rows"]:
        assert text.index(row["sentence"]) < text.index("Identification rates")
    assert "Differences to plain · direct" in text
    assert "1.2 to 6.4" in text
    assert "p 0.012" in text
    assert "adjusted over 14 tests" in text
    assert "if and only if its adjusted interval excludes 0" in text
    assert "bands of training shots are those of plain for both models" in text
    assert not re.search(r"\bNone\b|\bnan\b", text)


def test_a_report_without_a_comparison_has_no_such_section(report, tmp_path):
    for values in (report, report | {"comparison": None}):
        page = write_report(MegafaceReport.build(values), tmp_path, overwrite=True)
        assert "Differences to" not in page.read_text(encoding="utf-8")
        assert not (tmp_path / "tables/differences.csv").exists()
        assert "Points above" not in printed(values, 80)


def test_the_table_holds_every_difference(compared, tmp_path):
    path = write_report(MegafaceReport.build(compared), tmp_path).parent / "tables/differences.csv"
    lines = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    expected = [(row, figure) for row in compared["comparison"]["rows"] for figure in row["figures"]]
    assert len(lines) == len(expected)
    for line, (row, figure) in zip(lines, expected, strict=True):
        assert (line["reference"], line["reference_kind"], line["model"], line["kind"], line["rank"]) == (
            "plain", "direct", "oltr", row["kind"], "1",
        )  # fmt: skip
        assert line["difference"] == ("" if figure["difference"] is None else repr(figure["difference"]))
        assert line["decided"] == str(figure["decided"])
        assert line["name"] == figure["name"]


def printed(report, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_megaface(MegafaceReport.build(report), console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_shows_differences_and_sentences_after_the_rates(compared, width):
    text = printed(compared, width)
    assert all(len(line) <= width for line in text.splitlines())
    lines = text[text.index("Points above or below plain direct") :].splitlines()
    (heading,) = [line for line in lines if "Many" in line]
    assert heading.split()[-7:] == ["Many", "Few", "One", "Zero", "Full", "Male", "Female"]
    first = next(index for index, line in enumerate(lines) if line.split()[:1] == ["oltr"])
    assert lines[first].split() == ["oltr", "-", "+1.91", "-", "-", "+3.82*", "0.00", "+25.00"]
    assert "1.2 to 6.4" in lines[first + 1]
    assert "p 0.012" in lines[first + 2]
    # The intervals of the other columns need a wide terminal; a group's own table has room for them.
    assert ("-10.4 to 14.2" in text) == (width >= 115)
    assert "Points above or below plain direct, by age" in text
    assert "6.1 to 8.1" in text
    joined = " ".join(text.split())
    for row in compared["comparison"]["rows"]:
        assert row["sentence"] in joined
    assert "adjusted by Holm's method over 14 tests" in joined


def test_names_in_a_comparison_are_no_markup_and_no_control_code(compared, tmp_path):
    odd = '<script>alert("x")</script>[red]\x1b[31m'
    section = compared["comparison"]
    section |= {"reference": odd, "shots": odd}
    for part in (*compared["rows"], *compared["curves"], *compared["cmc"], *section["rows"]):
        part["model"] = odd
    section["rows"][0]["sentence"] = f"{odd} is above"
    section["rows"][0]["figures"][-1]["name"] = odd
    page = write_report(MegafaceReport.build(compared), tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\x1b" not in page
    text = printed(compared, 120)
    assert "\x1b" not in text
    assert "[red]" in text
    first = (tmp_path / "tables/differences.csv").read_text(encoding="utf-8").splitlines()[1]
    assert first.startswith('"<script>')
