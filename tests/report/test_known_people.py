"""Report on known people and strangers: terminal, page, tables and sentences equal the figures; names do no harm."""

import copy
import csv
import io
import json

import pytest
from rich.console import Console

from facelt.report.formatting import EN_DASH
from facelt.report.known_people import comparison_sentence, headline_scores, headline_sentences
from facelt.report.known_people_schema import KnownPeopleReport
from facelt.report.known_people_terminal import print_known_people
from facelt.report.write import write_report
from tests.report.test_write import Page

BANDS = {"many": "> 100", "medium": "20 to 100", "few": "2 to 19", "one": "1"}
COUNTS = {"all": (12_345, 3_210), "many": (0, 0), "medium": (345, 210), "few": (10_000, 2_000), "one": (2_000, 1_000)}


def rate(value, band="all") -> dict:
    ends = (None, None) if value is None else (value - 0.0512, value + 0.0489)
    images, identities = COUNTS[band]
    return {"rate": value, "low": ends[0], "high": ends[1], "images": images, "identities": identities}


def by_band(value) -> dict:
    return {band: rate(None if band == "many" else value + index / 100, band) for index, band in enumerate(COUNTS)}


def point(far, value, supported=True, reason=None) -> dict:
    measured = {"threshold": 0.1234, "accepted": 77, "rate": rate(value)}
    values = measured if reason is None else dict.fromkeys(measured)
    return {"far": far, **values, "supported": supported, "reason": reason}


REASON = "a FAR of 0.1 % needs 1,000 images of strangers; there are 770"


def result(model, score, value) -> dict:
    return {
        "model": model, "score": score, "accuracy": by_band(value), "dir_by_band": by_band(value - 0.3),
        "dir": [point(0.1, value - 0.1), point(0.01, value - 0.3, False), point(0.001, None, False, REASON)],
        "auroc": value + 0.05, "oscr": value - 0.05, "fpr_at_95_tpr": 0.3331,
        "curve": {"far": [0.01, 0.1, 1.0], "dir": [0.0, value - 0.1, value]},
    }  # fmt: skip


def comparison(model, score, metric="accuracy", band="all", **changes) -> dict:
    values = {"rate": 0.84, "reference_rate": 0.798, "difference": 0.042, "low": 0.0104, "high": 0.0741}
    tests = {"identities": 3_210, "p": 0.0002, "adjusted_p": 0.0014, "smallest_p": 1e-9, "decided": True}
    tests |= {"adjusted_low": 0.0003, "adjusted_high": 0.0842}
    key = {"model": model, "score": score, "metric": metric, "band": band}
    reference = {"reference_model": "run/plain", "reference_score": "class_mean"}
    return {**key, **reference, **values, **tests, **changes}


SERIES = [
    ("run/plain", "class_mean"),
    ("run/plain", "softmax"),
    ("run/oltr", "class_mean"),
    ("run/oltr", "reachability"),
]
REPORT = {
    "schema": "facelt.known_people/1",
    "title": "Known people and strangers",
    "notes": ["Synthetic faces."],
    "split": "test",
    "convention": "paper",
    "bands": BANDS,
    "level": 0.95,
    "compared_far": 0.01,
    "known": {band: {"images": images, "identities": people} for band, (images, people) in COUNTS.items()},
    "strangers": [{"path": "faces/strangers", "images": 700}, {"path": "faces/more", "images": 70}],
    "models": [
        {"name": "run/plain", "weights_sha256": "ab" * 32, "classes": 3_500, "default_score": "class_mean"},
        {"name": "run/oltr", "weights_sha256": "cd" * 32, "classes": 3_500, "default_score": "reachability"},
    ],
    "definitions": {"class_mean": "cosine to the mean", "softmax": "probability", "reachability": "familiarity"},
    "scores": [result(*series, 0.7 + index / 20) for index, series in enumerate(SERIES)],
    "reference": {"model": "run/plain", "score": "class_mean"},
    "comparisons": [
        comparison(*series, metric, band)
        for series in SERIES[1:]
        for metric, band in (("accuracy", "all"), ("accuracy", "few"), ("dir", "all"))
    ],
}  # fmt: skip


@pytest.fixture
def values():
    return copy.deepcopy(REPORT)


def printed(values) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80, color_system=None, legacy_windows=False)
    print_known_people(KnownPeopleReport.build(values), console)
    return out.getvalue()


def sentence(**changes) -> str:
    return comparison_sentence(
        KnownPeopleReport.build({**REPORT, "comparisons": [comparison("run/oltr", "reachability", **changes)]})
        .comparisons[0],
        KnownPeopleReport.build(REPORT),
    )  # fmt: skip


def test_a_difference_is_said_in_words():
    assert sentence(metric="dir") == (
        "run/oltr reachability names 4.2 points more known people than run/plain class_mean at FAR 1%, 95% interval "
        "1.0 to 7.4"
    )
    assert sentence(low=-0.0004, high=0.0741).endswith(" -0.04 to 7.4")
    fewer = sentence(difference=-0.0331, low=-0.051, high=0.002, decided=False)
    assert fewer == (
        "run/oltr reachability names 3.3 points fewer known people than run/plain class_mean without rejection, 95% "
        "interval -0.2 to 5.1: undecided at 3,210 identities (adjusted p 0.0014)"
    )
    unclear = sentence(difference=-0.02, low=-0.03, high=-0.01, adjusted_low=-0.041, adjusted_high=0.002, decided=False)
    assert unclear.endswith(
        "95% interval 1.0 to 3.0, adjusted for all differences -0.2 to 4.1: undecided at 3,210 identities (adjusted p "
        "0.0014)"
    )
    alone = sentence(difference=0.0, low=None, high=None, identities=1, decided=False, smallest_p=1.0)
    assert alone.endswith(
        "names as many known people as run/plain class_mean without rejection: undecidable with 1 identity (the "
        "smallest adjusted p they can reach is 1) (adjusted p 0.0014)"
    )


def test_the_headline_is_the_reference_and_the_default_score_of_each_model(values):
    report = KnownPeopleReport.build(values)
    assert [(part.model, part.score) for part in headline_scores(report)] == [SERIES[0], SERIES[3]]
    assert [text.split(" names")[0] for text in headline_sentences(report)] == ["run/oltr reachability"] * 2
    values["models"] = values["models"][:1]
    values["scores"] = values["scores"][:2]
    values["comparisons"] = values["comparisons"][:3]
    report = KnownPeopleReport.build(values)
    assert [(part.model, part.score) for part in headline_scores(report)] == SERIES[:2]
    assert [text.split(" names")[0] for text in headline_sentences(report)] == ["run/plain softmax"] * 2


def test_the_terminal_shows_figures_in_their_rows_and_columns(values):
    lines = printed(values).splitlines()
    assert max(map(len, lines)) <= 80
    first = next(index for index, line in enumerate(lines) if "class_mean" in line)
    assert lines[first - 1].split() == ["run/plain"]
    assert lines[first].split() == ["class_mean", "70.0", EN_DASH, "72.0", "73.0", "74.0"]
    assert lines[first + 1].split() == [f"{low}{EN_DASH}{high}" for low, high in (
        ("64.9", "74.9"), ("66.9", "76.9"), ("67.9", "77.9"), ("68.9", "78.9"),
    )]  # fmt: skip
    counts = next(line for line in lines if line.split()[:1] == ["images"])
    assert counts.split() == ["images", "12,345", "0", "345", "10,000", "2,000"]
    strangers = [line for line in lines if line.split()[:1] == ["reachability"]][-1]
    assert strangers.split() == ["reachability", "75.0", "55.0*", EN_DASH, "90.0", "80.0", "33.3"]
    text = " ".join(" ".join(lines).split())
    assert "names 4.2 points more known people than run/plain class_mean at FAR 1%, 95% interval 1.0 to 7.4." in text
    assert "FAR: the share of 770 images of strangers accepted." in text
    assert "* uncertain: fewer than 30 images of strangers" in text
    assert f"{EN_DASH} {REASON}." in text
    assert "Synthetic faces." in text


def test_long_and_hostile_names_stay_within_80_columns(values):
    for part in (*values["models"], *values["scores"], *values["comparisons"]):
        key = "name" if "name" in part else "model"
        part[key] = f"a/very/long/[red]name\x1b[31m/of/a/run/{part[key]}"
    values["reference"]["model"] = f"a/very/long/[red]name\x1b[31m/of/a/run/{values['reference']['model']}"
    text = printed(values)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "[red]" in text


@pytest.fixture
def page(values, tmp_path):
    return Page(write_report(KnownPeopleReport.build(values), tmp_path))


def test_the_page_shows_every_figure(page, values):
    text = " ".join(page.text.split())
    for part in values["scores"]:
        rates = [
            *part["accuracy"].values(),
            *part["dir_by_band"].values(),
            *(row["rate"] for row in part["dir"] if row["rate"]),
        ]
        for number in (*(row["rate"] for row in rates), part["auroc"], part["oscr"], part["fpr_at_95_tpr"]):
            assert number is None or f"{100 * number:.1f}" in text
    for words in (
        "Synthetic faces.",
        "ab" * 32,
        "faces/more: 70 images",
        REASON,
        "Familiarity.",
        "12,345 images",
        "0.0014",
    ):
        assert words in text
    assert "None" not in text
    assert "at FAR 1%, 95% interval 1.0 to 7.4." in text


def test_the_page_is_one_offline_file_that_can_be_read_aloud(page):
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert not page.all("script")
    assert all(header.get("scope") for header in page.all("th"))
    drawings = [svg["aria-label"] for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == 2
    assert "run/oltr · reachability: DIR 75.00 percent at FAR 10 percent" in drawings[0]
    assert "run/plain · class_mean all 70.0 percent, many not measured, medium 72.0 percent" in drawings[1]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_files_hold_every_figure(values, tmp_path):
    folder = write_report(KnownPeopleReport.build(values), tmp_path).parent
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == values
    tables = {path.stem: list(csv.DictReader(path.open(newline=""))) for path in (folder / "tables").glob("*.csv")}
    assert {name: len(rows) for name, rows in tables.items()} == {
        "accuracy": 20, "dir": 12, "dir_by_band": 20, "detection": 4, "curves": 12, "comparisons": 9,
    }  # fmt: skip
    first = {row["band"]: row["rate"] for row in tables["accuracy"][:5]}
    assert first == {
        band: "" if part["rate"] is None else repr(part["rate"])
        for band, part in values["scores"][0]["accuracy"].items()
    }
    assert [row["dir"] for row in tables["curves"][:3]] == ["0.0", "0.6", "0.7"]
    assert (tables["dir"][2]["threshold"], tables["dir"][2]["rate"]) == ("", "")
    assert {row["decided"] for row in tables["comparisons"]} == {"True"}


def test_hostile_names_run_nowhere(values, tmp_path):
    script, formula = '<script>alert("x")</script>', "=cmd()|'/c calc'!A1"
    names = {"run/plain": script, "run/oltr": formula}
    for part in (*values["models"], *values["scores"], *values["comparisons"]):
        key = "name" if "name" in part else "model"
        part[key] = names[part[key]]
    values["reference"]["model"] = script
    values["strangers"][0]["path"] = script
    path = write_report(KnownPeopleReport.build(values), tmp_path)
    page = Page(path)
    assert not page.all("script")
    assert "<script>" in page.text
    for table in (path.parent / "tables").glob("*.csv"):
        rows = list(csv.reader(table.open(newline="")))
        assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)


def test_a_figure_that_is_missing_or_unknown_is_named(values):
    del values["scores"][1]["dir"][0]["far"]
    with pytest.raises(ValueError, match=r"scores\[1\].dir\[0\] lacks far \(schema facelt.known_people/1\)"):
        KnownPeopleReport.build(values)
