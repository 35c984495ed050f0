"""Verification report on the terminal: figures, 80 columns, and missing rates."""

import copy
import io

import pytest
from rich.console import Console

from facelt.report.formatting import EN_DASH
from facelt.report.schema import VerificationReport
from facelt.report.verification import print_verification


def point(wanted, tar, supported=True, reason=None, **changes) -> dict:
    limits = None if tar is None else [max(tar - 0.0121, 0), min(tar + 0.0121, 1)]
    defaults = {"tar_limits": limits, "far": wanted, "far_limits": [0, 1], "score": 0.5, "false_matches": 3}
    return {"wanted": wanted, "tar": tar, "supported": supported, "reason": reason, **defaults, **changes}


REPORT = {
    "schema": "facelt.verification/1",
    "source": {"name": "runs/faces", "kind": "direct", "flip_averaged": True, "weights_sha256": "00"},
    "level": 0.95,
    "sets": [
        {
            "name": "lfw",
            "path": "sets/lfw.bin",
            "mated": 3000,
            "nonmated": 3000,
            "people": 5749,
            "accuracy": 0.99516,
            "accuracy_std": 0.00341,
            "accuracy_folds": [0.995] * 10,
            "distance_folds": [1.5] * 10,
            "points": [
                point(1e-4, None, reason="a rate of 0.0001 needs 10,000 non-mated comparisons; there are 3,000"),
                point(1e-3, 0.9712, supported=False),
                point(1e-2, 0.98765),
                point(1e-1, 0.99, tar_limits=None),
            ],
        },
    ],
}
REPORT["sets"].append(REPORT["sets"][0] | {"name": "a_set_with_a_long_name_\x1b[31m", "accuracy": 0.5})


def printed(report: dict, width: int = 80) -> str:
    out = io.StringIO()
    print_verification(
        VerificationReport.build(report), Console(file=out, width=width, color_system=None, legacy_windows=False)
    )
    return out.getvalue()


def test_figures_are_in_their_rows_and_columns():
    text = printed(REPORT)
    assert max(map(len, text.splitlines())) <= 80
    assert "runs/faces: direct embedding, image and mirror image averaged; in %" in text
    header = next(line for line in text.splitlines() if "FAR 0.001" in line)
    assert header.split() == ["accuracy", "FAR", "0.0001", "FAR", "0.001", "FAR", "0.01", "FAR", "0.1"]
    lines = text.splitlines()
    position = next(number for number, line in enumerate(lines) if line.split()[:1] == ["lfw"])
    assert lines[position].split() == ["lfw", "99.52", EN_DASH, "97.12*", "98.77", "99.00"]
    assert lines[position + 1].split() == ["6,000", "pairs", "±", "0.34", f"95.9{EN_DASH}98.3", f"97.6{EN_DASH}100.0"]
    assert "50.00" in lines[position + 2]
    assert "95 % limits" in text
    assert "* uncertain: too few non-mated pairs for 30 errors at this rate." in text
    assert f"{EN_DASH} lfw: a rate of 0.0001 needs 10,000 non-mated comparisons" in text
    assert "\x1b" not in text


def test_unknown_values_are_left_out():
    report = copy.deepcopy(REPORT)
    report["source"] = {"name": "elsewhere.npz", "kind": None, "flip_averaged": None}
    for entry in report["sets"]:
        entry["points"] = entry["points"][2:]
    text = printed(report)
    assert text.startswith("elsewhere.npz; in %\n")
    assert "uncertain" not in text
    assert "needs" not in text
    report["source"] = {"name": "runs/faces", "kind": "meta", "flip_averaged": False}
    assert "runs/faces: meta embedding, without mirror images; in %" in printed(report)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda report: report.update(schema="facelt.verification/2"), r"schema: .*facelt\.verification/2"),
        (lambda report: report.pop("level"), "report lacks level"),
        (lambda report: report["source"].pop("kind"), "source lacks kind"),
        (lambda report: report["sets"][1].pop("accuracy"), r"sets\[1\] lacks accuracy"),
        (lambda report: report["sets"][1]["points"][3].pop("tar"), r"sets\[0\]\.points\[3\] lacks tar"),
    ],
)
def test_a_report_that_lacks_something_is_refused(spoil, reason):
    report = copy.deepcopy(REPORT)
    VerificationReport.build(report)
    spoil(report)
    with pytest.raises(ValueError, match=reason):
        VerificationReport.build(report)
