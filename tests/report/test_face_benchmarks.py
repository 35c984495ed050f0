"""Reports on IJB and TinyFace on the terminal: figures, 80 columns, missing rates; and their CSV tables."""

import copy
import csv
import io
import json

import pytest
from rich.console import Console

from facelt.errors import UserError
from facelt.report.face_benchmarks import print_ijb, print_tinyface
from facelt.report.formatting import EN_DASH
from facelt.report.schema import IjbReport, TinyfaceReport
from facelt.report.write import report_folder, write_report_files


def pair_point(wanted, tar, **changes) -> dict:
    limits = None if tar is None else [tar - 0.01, min(tar + 0.01, 1)]
    values = {"wanted": wanted, "tar": tar, "tar_limits": limits, "far": wanted, "far_limits": [0, 1], "score": 0.5}
    return values | {"false_matches": 3, "supported": True, "reason": None, "warning": None, **changes}


def search_point(wanted, fnir, **changes) -> dict:
    half = {"threshold": 0.4, "fpir": wanted, "fnir": fnir, "false_positives": 2}
    values = {"wanted": wanted, "fnir": fnir, "fnir_limits": [0.01, 0.2], "fpir": wanted, "supported": True}
    return values | {"reason": None, "galleries": [half, half], **changes}


RANKS = [{"rank": 1, "rate": 0.9512, "limits": [0.9, 0.97]}, {"rank": 5, "rate": 1.0, "limits": None}]
IJB = {
    "schema": "facelt.ijb/1",
    "dataset": "IJB-C",
    "source": {"name": "runs/faces\x1b[31m", "kind": "direct", "flip_averaged": True, "weights_sha256": "00"},
    "weighting": {"detector_score": True, "normalized": False},
    "level": 0.95,
    "images": 469375,
    "media": 140000,
    "templates": 23124,
    "verification": {
        "mated": 19557,
        "nonmated": 15638932,
        "people": 3531,
        "points": [
            pair_point(1e-6, None, reason="a rate of 1e-06 needs 1,000,000 non-mated comparisons; there are 9"),
            pair_point(1e-5, 0.91234, supported=False, warning="the threshold is high"),
            pair_point(1e-4, 0.95),
            pair_point(1e-3, 0.96),
            pair_point(1e-2, 0.97, tar_limits=[0.98, 1.0]),
            pair_point(1e-1, 0.99, tar_limits=[0.98, 1.0]),
        ],
    },
    "identification": {
        "subjects": 3531,
        "galleries": [
            {"name": name, "templates": 1772, "subjects": 1772, "mated": 9000, "nonmated": 10593}
            for name in ("G1", "G2")
        ],
        "ranks": RANKS,
        "rank": 1,
        "points": [search_point(0.1, 0.05), search_point(0.01, 0.0812), search_point(0.001, 0.2, supported=False)],
    },
}
TINYFACE = {
    "schema": "facelt.tinyface/1",
    "source": {"name": "features.npy", "kind": None, "flip_averaged": None},
    "level": 0.95,
    "identities": 2569,
    "probes": 3728,
    "probes_without_mate": 0,
    "gallery_matches": 4443,
    "distractors": 153428,
    "ranks": RANKS,
}


def printed(write, report) -> str:
    out = io.StringIO()
    write(report, Console(file=out, width=80, color_system=None, legacy_windows=False))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    return out.getvalue()


def test_ijb_figures_are_in_their_rows():
    text = printed(print_ijb, IjbReport.build(IJB))
    lines = [line.split() for line in text.splitlines()]
    assert "\x1b" not in text
    assert ["FAR", "1e-6", "FAR", "1e-5", "FAR", "1e-4", "FAR", "0.001", "FAR", "0.01", "FAR", "0.1"] in lines
    assert ["1:1", EN_DASH, "91.23*", "95.00", "96.00", "97.00", "99.00"] in lines
    assert ["1:N", "95.12", "100.00", "5.00", "8.12", "20.00*"] in lines
    # The widest limits are on one line.
    assert f" 98.0{EN_DASH}100.0 " in text
    assert f"90.0{EN_DASH}97.0" in text
    text = " ".join(text.split())
    assert "23,124 templates of 140,000 media, 469,375 images (weighed by the detection score)" in text
    assert "1:1: 19,557 mated and 15,638,932 non-mated pairs." in text
    assert "G1 1,772 templates, 9,000 mated and 10,593 non-mated searches" in text
    assert "* uncertain: too few non-mated pairs or searches" in text
    assert f"{EN_DASH} a rate of 1e-06 needs 1,000,000 non-mated comparisons; there are 9." in text
    assert "FAR 1e-5: the threshold is high." in text


def test_ijb_without_identification_and_weights():
    report = copy.deepcopy(IJB) | {"identification": None, "weighting": {"detector_score": False, "normalized": True}}
    text = " ".join(printed(print_ijb, IjbReport.build(report)).split())
    assert "(not weighed, scaled to unit length)" in text
    assert "The lists of 1:N identification are not there, so it is not measured." in text
    assert "FNIR" not in text


def test_tinyface_figures():
    text = printed(print_tinyface, TinyfaceReport.build(TINYFACE))
    assert ["3,728", "95.12", "100.00"] in [line.split() for line in text.splitlines()]
    assert text.startswith("TinyFace, features.npy; in %")
    assert "no mate" not in text
    text = " ".join(printed(print_tinyface, TinyfaceReport.build(TINYFACE | {"probes_without_mate": 28})).split())
    assert "3,700" in text
    assert "28 probes have no mate in the gallery and are not counted." in text


def test_tables_hold_the_figures(tmp_path):
    with report_folder(IjbReport, tmp_path / "ijb") as folder:
        write_report_files(IjbReport.build(IJB), folder)
    assert json.loads((tmp_path / "ijb/report.json").read_text())["dataset"] == IJB["dataset"]

    def rows(name: str) -> list[dict]:
        return list(csv.DictReader((tmp_path / name).open(newline="")))

    assert [row["tar"] for row in rows("ijb/tables/verification.csv")] == [
        "",
        "0.91234",
        "0.95",
        "0.96",
        "0.97",
        "0.99",
    ]
    assert rows("ijb/tables/open_set.csv")[1]["fnir"] == "0.0812"
    with report_folder(TinyfaceReport, tmp_path / "tinyface") as folder:
        write_report_files(TinyfaceReport.build(TINYFACE), folder)
    with pytest.raises(UserError, match="is another report"), report_folder(IjbReport, tmp_path / "tinyface"):
        pass
    expected = [{"rank": "1", "rate": "0.9512", "low": "0.9", "high": "0.97"}]
    assert rows("tinyface/tables/ranks.csv")[:1] == rows("ijb/tables/ranks.csv")[:1] == expected


@pytest.mark.parametrize("key", ["verification", "identification", "level"])
def test_a_report_that_lacks_something_is_refused(key):
    with pytest.raises(ValueError, match=f"report lacks {key}"):
        IjbReport.build({name: value for name, value in IJB.items() if name != key})
