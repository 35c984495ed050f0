"""Verification and open-set identification in a MegaFace report: each rate with its threshold, and missing rates."""

import copy
import csv
import io
import json

import pytest
from rich.console import Console

from facelt.report.formatting import rate_name
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.megaface_terminal import print_megaface
from facelt.report.megaface_thresholds import open_set_table, verification_table
from facelt.report.write import write_report

NEEDS = "a rate of 1e-06 needs 1,000,000 non-mated comparisons; there are 270"
FEW = "a rate of 0.001 needs 1,000 non-mated searches; half 1 has 292"


def tar(wanted, rate, threshold, matches, supported=True, reason=None):
    return {
        "wanted": wanted, "tar": rate, "fmr": None if rate is None else wanted, "threshold": threshold,
        "false_matches": matches, "supported": supported, "reason": reason,
    }  # fmt: skip


def fnir(wanted, rate, halves=(), reason=None):
    keys = ("threshold", "fpir", "fnir", "false_positives")
    return {
        "wanted": wanted, "fnir": rate, "fpir": None if rate is None else wanted, "supported": False, "reason": reason,
        "halves": [dict(zip(keys, half, strict=True)) for half in halves],
    }  # fmt: skip


@pytest.fixture
def measured(report):
    """The report of a run with both measurements."""
    points = [
        tar(1e-6, None, None, None, False, NEEDS),
        tar(1e-3, 0.6493, 0.4796, 4, False),
        tar(0.1, 0.9879, 0.1223, 40),
    ]
    det = {"threshold": [0.5, 0.4, 0.1], "fmr": [0.001, 0.01, 0.1], "fnmr": [0.4, 0.3, 0.02]}
    report["verification"] = {
        "mated": 13101, "nonmated": 4086324, "distractors": 6732, "smallest_far": 0.01,
        "rates": [
            {"model": model, "kind": kind, "points": points, "det": det, "resolution": 4e-6, "seconds": 12.34}
            for model, kind in (("plain", "direct"), ("oltr", "meta"))
        ],
    }  # fmt: skip
    result = [fnir(0.1, 0.1781, [(0.4072, 0.099, 0.107, 29), (0.4254, 0.098, 0.249, 31)]), fnir(0.001, None, (), FEW)]
    curve = {"fpir": [0.003, 0.1, 1.0], "fnir": [0.28, 0.18, 0.14]}
    report["open_set"] = {
        "rank": 5, "seed": 3, "enrolment": "one image drawn with the seed", "distractors": 6732,
        "smallest_fpir": 30 / 292,
        "halves": [
            {"enrolled": 7, "gallery": 6739, "mated": 308, "nonmated": 292},
            {"enrolled": 8, "gallery": 6740, "mated": 284, "nonmated": 315},
        ],
        "rates": [
            {"model": "oltr", "kind": "meta", "score": score, "points": result, "curve": curve, "seconds": 3.21}
            for score in ("similarity", "reachability")
        ],
    }  # fmt: skip
    return copy.deepcopy(report)


def page_text(path):
    """Returns the visible text of a page, and its source."""
    from html.parser import HTMLParser

    texts, parser, source = [], HTMLParser(), path.read_text(encoding="utf-8")
    parser.handle_data = texts.append
    parser.feed(source)
    return " ".join(" ".join(texts).split()), source


def write(values, out):
    return write_report(MegafaceReport.build(values), out, overwrite=True)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def printed(report, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_megaface(MegafaceReport.build(report), console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("rate", "name"),
    [(0.1, "0.1"), (0.01, "0.01"), (1e-3, "0.001"), (1e-4, "1e-4"), (1e-6, "1e-6"), (2.5e-5, "2.5e-5")],
)
def test_rates_are_named_as_people_write_them(rate, name):
    assert rate_name(rate) == name


def test_the_page_has_figures_thresholds_and_circumstances(measured, tmp_path):
    text, _ = page_text(write(measured, tmp_path))
    for words in (
        "13,101 mated pairs", "4,086,324 non-mated pairs", "FAR 1e-6", "1 in 1,000,000", "98.79", "at 0.1223", "12.3",
        "FNIR in % at rank 5", "FPIR 0.1", "17.81", "at 0.4072, 0.4254", "one image drawn with the seed (seed 3)",
        "6,740", "reachability", "open-set identification does",
    ):  # fmt: skip
        assert words in text


def test_unsupported_rates_are_reported_without_a_number(measured, tmp_path):
    path = write(measured, tmp_path)
    text, _ = page_text(path)
    assert text.count(NEEDS) == text.count(FEW) == 2
    assert text.count("uncertain: 4 false matches") == 2
    assert text.count("uncertain: 29 and 31 false positives") == 2
    assert "None" not in text
    table = verification_table(MegafaceReport.build(measured))
    assert [cell.rate for cell in table.rows[0].cells] == [None, 0.6493, 0.9879]
    assert [bool(cell.doubt) for cell in table.rows[0].cells] == [False, True, False]
    assert table.reasons == (f"FAR 1e-6: {NEEDS}",)


def test_headers_have_a_scope_and_plots_say_their_numbers(measured, tmp_path):
    _, source = page_text(write(measured, tmp_path))
    assert source.count("<th ") == source.count("<th scope=")
    assert "<th>" not in source
    assert "FNMR not measured at FMR 0.0001 percent, FNMR 35.07 percent at FMR 0.1 percent" in source
    assert "oltr · meta · reachability: FNIR 17.81 percent at FPIR 10 percent" in source
    assert source.count('role="img"') == 6
    ids = [part.split('"')[0] for part in source.split(' id="')[1:]]
    assert len(ids) == len(set(ids))


def test_two_scores_of_a_model_look_different(measured):
    first, second = (row.style for row in open_set_table(MegafaceReport.build(measured)).rows)
    assert first.colour == second.colour
    assert first.look != second.look


def test_the_csv_tables_hold_every_figure(measured, tmp_path):
    folder = write(measured, tmp_path).parent / "tables"
    rows = read_csv(folder / "verification.csv")
    assert [row["tar"] for row in rows] == ["", "0.6493", "0.9879"] * 2
    assert rows[0]["reason"] == NEEDS
    assert [float(row["fnmr"]) for row in read_csv(folder / "det.csv")] == [0.4, 0.3, 0.02] * 2
    rows = read_csv(folder / "open_set.csv")
    assert [(row["score"], row["fnir"]) for row in rows] == [
        ("similarity", "0.1781"), ("similarity", ""), ("reachability", "0.1781"), ("reachability", ""),
    ]  # fmt: skip
    rows = read_csv(folder / "open_set_halves.csv")
    assert [(row["half"], row["threshold"], row["gallery"], row["false_positives"]) for row in rows] == [
        ("1", "0.4072", "6739", "29"), ("2", "0.4254", "6740", "31"),
    ] * 2  # fmt: skip
    assert len(read_csv(folder / "open_set_curves.csv")) == 6


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_summary(measured, width):
    text = printed(measured, width)
    assert all(len(line) <= width for line in text.splitlines())
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Verification: TAR in % at FAR"))
    assert lines[start + 3].split() == ["kind", "1e-6", "0.001", "0.1", "seconds"]
    assert lines[start + 5].split() == ["plain", "-", "64.93*", "98.79", "12.3"]
    assert "Open-set identification: FNIR in % at FPIR" in text
    assert " ".join(text.split()).count(f"- FAR 1e-6: {NEEDS}.") == 1
    assert "rank 5, mean of two halves; galleries of 6,739 and 6,740 images" in " ".join(text.split())
    assert "* uncertain" in text


def test_a_report_without_them_does_not_mention_them(report, tmp_path):
    for sections in ({}, {"verification": None, "open_set": None}):
        path = write(report | sections, tmp_path)
        text, _ = page_text(path)
        assert "TAR" not in text
        assert "Open-set" not in text
        assert "uncertain" not in printed(report | sections)
    assert not (path.parent / "tables/verification.csv").exists()


def test_nothing_enough_for_a_figure_is_still_a_page(measured, tmp_path):
    for entry in measured["verification"]["rates"]:
        entry["points"] = [tar(0.1, None, None, None, False, NEEDS)]
        entry["det"] = {"threshold": [], "fmr": [], "fnmr": []}
    for entry in measured["open_set"]["rates"]:
        entry["points"], entry["curve"] = [fnir(0.1, None, (), FEW)], {"fpir": [], "fnir": []}
    measured["verification"]["smallest_far"] = measured["open_set"]["smallest_fpir"] = None
    _, source = page_text(write(measured, tmp_path))
    assert source.count("no curve: too few trials") == 2


def test_hostile_names_run_nowhere(measured, tmp_path):
    script = '<script>alert("x")</script>\x1b[31m'
    for name in ("verification", "open_set"):
        for entry in measured[name]["rates"]:
            entry["model"] = script
    measured["open_set"]["rates"][0]["score"] = measured["open_set"]["rates"][0]["points"][1]["reason"] = script
    path = write(measured, tmp_path)
    text, source = page_text(path)
    assert "<script" not in source
    assert "<script>" in text
    assert "\x1b" not in source + printed(measured)
    assert json.loads(path.with_name("report.json").read_text())["verification"]["rates"][0]["model"] == script


@pytest.mark.parametrize(
    ("section", "key", "match"),
    [
        ("verification", "mated", "verification lacks mated"),
        ("open_set", "enrolment", "open_set lacks enrolment"),
    ],
)
def test_a_missing_key_is_named(measured, tmp_path, section, key, match):
    del measured[section]["rates"][1]["seconds"]
    with pytest.raises(ValueError, match=rf"{section}\.rates\[1\] lacks seconds"):
        write(measured, tmp_path)
    del measured[section][key]
    with pytest.raises(ValueError, match=match):
        write(measured, tmp_path)
