"""Evaluation report on the terminal (80 columns) and in files, with control characters and formulas neutralised."""

import copy
import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from facelt.report.evaluation import OPEN_SET_METRICS, print_evaluation
from facelt.report.formatting import EN_DASH
from facelt.report.schema import EvaluationReport
from facelt.report.write import MAX_CURVE_POINTS, write_open, write_sweep, write_table
from facelt.utils.json_values import json_line

BANDS = {"many": 1_234, "medium": 56_789, "few": 123_456}
ACCURACY = {"overall": 0.41, "many": 0.72, "medium": None, "few": 0.0123, "classes": BANDS, "images": BANDS}
OPEN = {
    "method": "reachability",
    "threshold": 12.345678,
    "threshold_from": "accepts 95 % of known validation images",
    **ACCURACY,
    "open_images": 6_600,
    **{name: 0.1 + 0.01 * index for index, name in enumerate(OPEN_SET_METRICS)},
    "reason": None,
    "confusion": {
        **{band: dict(zip(("right", *BANDS, "rejected"), range(5), strict=True)) for band in BANDS},
        "open": {"right": 0, "many": 123_456, "medium": 0, "few": 7, "rejected": 89},
    },
}
REPORT = {
    "schema": "facelt.evaluation/1",
    "model": {"name": "run/oltr", "weights_sha256": "ab" * 32, "classes": 8_142},
    "split": "validation",
    "convention": "released",
    **ACCURACY,
    "macro_f": 0.333,
    "ece": None,
    "ece_bins": 15,
    "open": OPEN,
    "experts": None,
}


@pytest.fixture
def report():
    return copy.deepcopy(REPORT)


def shown(report, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_evaluation(EvaluationReport.build(report), console)
    return console.file.getvalue()


COMPARISON = {
    "reference": "run/plain\x1b[2J",
    "level": 0.95,
    "differences": [
        {
            **{"band": "overall", "reference_rate": 0.39, "rate": 0.41, "difference": 0.02, "low": 0.004, "high": 0.03},
            **{"classes": 100, "p": 0.001, "adjusted_p": 0.004, "adjusted_low": 0.003, "adjusted_high": 0.04},
            **{"smallest_p": 1e-9, "decided": True},
        },
        {
            **{"band": "few", "reference_rate": 0.1, "rate": 0.09, "difference": -0.01, "low": None, "high": None},
            **{"classes": 1, "p": None, "adjusted_p": None, "adjusted_low": None, "adjusted_high": None},
            **{"smallest_p": None, "decided": False},
        },
    ],
}


def test_differences_to_another_model_stand_below_the_accuracies(report):
    text = shown({**report, "comparison": COMPARISON})
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["difference", "+2.00*", "-", "-", "-1.00"] in lines
    assert ["0.3", "to", "4.0", "p", EN_DASH] in lines
    assert ["p", "0.004"] in lines
    assert "difference to run/plain" in " ".join(text.split())
    assert "\x1b" not in text


def test_every_line_fits_80_columns(report):
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "reachability, threshold 12.3457 (accepts 95 % of known validation images), 6,600 open images" in words
    assert "accuracy 41.00 72.00 - 1.23" in words
    assert "macro-F 33.30, calibration error (ECE, 15 bins) -" in words
    assert "classes 181,479 1,234 56,789 123,456" in words
    # An open-set image has no correct class.
    assert "open 123,456 0 7 89 123,552" in words
    for index, figure in enumerate(OPEN_SET_METRICS.values()):
        assert f"{figure} {10 + index}.00" in words


def test_experts_are_listed_with_their_average(report):
    counts = {"right": (5_001, 4_002), "lost": (31, 42), "won": (503, 604), "some_right": 60, "none_right": 7}
    report["experts"] = {"images": 10_000, "average_right": 6_003, **counts}
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["expert", "1", "5,001", "31", "503"] in rows
    assert ["expert", "2", "4,002", "42", "604"] in rows
    assert ["ensemble", "6,003"] in rows
    assert "ensemble wrong, some expert right: 60; ensemble right, no expert right: 7" in text


def test_without_a_rejection_there_is_one_table(report):
    text = shown({**report, "open": None})
    assert "with rejection" not in text
    assert "AUROC" not in text
    assert text.count("accuracy") == 2


def test_missing_figures_have_a_reason(report):
    report["open"] |= {
        **dict.fromkeys(OPEN_SET_METRICS),
        "open_images": 0,
        "reason": "there are 9 known and 0 open images",
    }
    words = " ".join(shown(report).split())
    assert "AUROC -" in words
    assert "- : there are 9 known and 0 open images" in words


def test_a_name_moves_no_cursor(report):
    report["model"]["name"] = "a\x1b[2J\u202eb\nc"
    assert "a\ufffd[2J\ufffdb\ufffdc: accuracy" in shown(report)
    assert "\x1b" not in shown(report)


def test_markup_in_a_name_is_text(report):
    report["model"]["name"] = "[red]run[/red]"
    assert "[red]run[/red]: accuracy" in shown(report)


@pytest.mark.parametrize("section", ["", "open", "model"])
def test_a_missing_key_is_named(report, section):
    part = report[section] if section else report
    key = list(part)[-1]
    del part[key]
    with pytest.raises(ValueError, match=rf"{section or 'report'} lacks {key} \(schema"):
        EvaluationReport.build(report)


def test_another_schema_is_refused(report):
    with pytest.raises(ValueError, match=r"schema: .*facelt\.evaluation/1.*facelt\.audit/1"):
        EvaluationReport.build({**report, "schema": "facelt.audit/1"})


def test_json_is_one_line_without_nan():
    assert json_line({"a": np.float32("nan"), "b": np.arange(2)}) == '{"a": null, "b": [0, 1]}'


def rows(path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_files_of_the_open_set(report, tmp_path):
    curve = np.linspace(0, 1, 10_001)
    second = {**report, "model": {**report["model"], "name": "=other"}}
    confusion, oscr = write_open(
        tmp_path / "new", [EvaluationReport.build(report), EvaluationReport.build(second)], [(curve, curve / 2), None]
    )
    assert rows(confusion)[4] == ["run/oltr", "open", "0", "123456", "0", "7", "89"]
    assert {row[0] for row in rows(confusion)[1:]} == {"run/oltr", "'=other"}
    points = rows(oscr)[1:]
    assert len(points) == MAX_CURVE_POINTS
    assert (points[0][1:], points[-1][1:]) == (["0.0", "0.0"], ["1.0", "0.5"])
    assert {row[0] for row in points} == {"run/oltr"}


def test_a_table_of_classes_runs_nothing(tmp_path):
    write_table(tmp_path / "classes.csv", ("class", "name"), [[0, "=cmd()"], [1, None]])
    assert rows(tmp_path / "classes.csv") == [["class", "name"], ["0", "'=cmd()"], ["1", ""]]


HEADER = ("model", "imbalance", "overall", "many", "medium", "few", "open_images", "open_rejected")
HEADER += ("f_measure_paper", "f_measure_released", "macro_f_with_unknown")


def words_of(path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(path).getroot().iter() if element.text]


def test_a_sweep_of_one_model_draws_its_figures_and_leaves_out_what_is_missing(tmp_path):
    closed = [["plain", x, 0.5, None, 0.4, 0.1, *[None] * 5] for x in (10.0, 100.0)]
    files = write_sweep(tmp_path, "longtailness", HEADER, closed)
    assert [path.name for path in files] == ["longtailness.csv", "longtailness.svg", "longtailness.png"]
    words = words_of(files[1])
    assert {"all images", "medium shots", "few shots", "10", "100"} <= set(words)
    assert "many shots" not in words
    assert b"stroke-dasharray: ;" not in files[1].read_bytes()


def test_a_sweep_of_several_models_draws_the_f_measure_of_each(tmp_path):
    points = [[model, x, 0.5, 0.6, 0.4, 0.1, 9, 0.2, 0.3, 0.35, 0.4] for model in ("a$b$", "c") for x in (1, 2, 3)]
    header = ("model", "open_classes", *HEADER[2:])
    words = words_of(write_sweep(tmp_path, "open-classes", header, points)[1])
    assert {"a$b$", "c", "open classes", "F-measure, released form (%)"} <= set(words)
    assert "known images right" not in words
    # There is no half class.
    assert {"1", "2", "3"} <= set(words)
    assert not {"1.5", "1.50"} & set(words)


@pytest.mark.parametrize(("last", "gaps"), [(1000.0, 1.0), (3.0, 20.0)])
def test_thresholds_over_decades_have_a_logarithmic_axis(tmp_path, last, gaps):
    """Three thresholds over several decades are equally spaced; closer ones lie on a linear axis."""
    places = (1.0, last**0.5 if gaps == 1 else 1.095238, last)
    points = [["c", x, 0.5, 0.6, 0.4, 0.1, 9, 0.2, 0.3, 0.35, 0.4] for x in places]
    header = ("model", "threshold", *HEADER[2:])
    svg = write_sweep(tmp_path, "threshold", header, points)[1].read_text()
    (line,) = re.findall(r'<path d="M ([^"]*)" clip-path[^>]*#0072b2', svg)
    x = [float(pair.split()[0]) for pair in line.split("L")]
    assert (x[2] - x[1]) / (x[1] - x[0]) == pytest.approx(gaps, rel=0.01)
