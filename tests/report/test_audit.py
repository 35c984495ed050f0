"""Audit report: content of the page and the tables, and escaping of names from data."""

import csv
import json
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from facelt.report.audit_schema import AuditReport, ContrastEntry, DisparityEntry
from facelt.report.audit_terminal import print_audit
from facelt.report.audit_text import disparity_interval, disparity_text, model_card, significance_text, table_verdict
from facelt.report.formatting import p_value, small_percent, small_percent_interval
from facelt.report.write import write_report

METRICS = {"rank1": (80, 100), "fnir": (20, 100), "fpir": (0, 100), "fmr": (5, 50_000), "fnmr": (10, 100)}


def rate(events, trials, small=False):
    value = events / trials
    return {
        "rate": value, "low": value * 0.5, "high": min(1.0, value * 1.5 + 0.01), "events": float(events),
        "trials": float(trials), "identities": 3 if small else 20, "effective": 30.0, "small": small,
        "coverage": {"mean": 0.9487, "lowest": 0.9385},
    }  # fmt: skip


def group(name, worse, small=False):
    return {
        "group": name, "identities": 3 if small else 20, "images": 100, "failures": 2, "failure_rate": 0.02,
        "small": small,
        "rates": {metric: rate(events + worse, trials, small) for metric, (events, trials) in METRICS.items()},
        "own_threshold": {
            "wanted": 1e-3, "threshold": 0.4321, "fmr": 0.0009, "fnmr": 0.12, "supported": True, "reason": None,
        },
    }  # fmt: skip


def verdict(p, adjusted, smallest=0.001):
    """Returns the fields of a test whose limits agree with its p-values at 5%."""
    low, adjusted_low = (0.01 if value is not None and value < 0.05 else -0.02 for value in (p, adjusted))
    return low, {
        "p": p, "adjusted_p": adjusted, "adjusted_low": adjusted_low, "adjusted_high": 0.1666, "smallest_p": smallest,
        "decided": adjusted_low > 0,
    }  # fmt: skip


def contrast(metric, first, second, p, adjusted, smallest=0.001):
    low, test = verdict(p, adjusted, smallest)
    return {
        "metric": metric, "by": ["hat"], "first": first, "second": second, "identities": 40, "difference": 0.07,
        "low": low, "high": 0.15, "ratio": 1.5, "ratio_low": 0.9, "ratio_high": None, **test,
    }  # fmt: skip


def disparity(figure, metric, value, at_least=False, note=""):
    ends = (value / 3, None) if at_least else (value / 2, value * 2)
    return {
        "figure": figure, "metric": metric, "by": ["hat"], "value": value, "at_least": at_least, "note": note,
        "low": ends[0], "high": ends[1],
    }  # fmt: skip


def condition(text, state, *reasons):
    return {"text": text, "state": state, "reasons": list(reasons)}


def make(red="red", blue="blue", by="hat", title="An audit", path="people.csv"):
    """Builds a report of two groups and a small third one; every name that comes from data can be replaced."""
    names = [[red], [blue], ["rare"]]
    groups = [group(names[0], 0), group(names[1], 7), group(names[2], 3, small=True)]
    return {
        "schema": "facelt.audit/1", "title": title, "notes": [f"About {red}."],
        "provenance": {"data": red, "consent": "asked", "licence": "none", "model": blue, "auditor": ""},
        "statistics": {"level": 0.95, "alpha": 0.5, "seed": 0, "min_identities": 5},
        "subject": {
            "source": "embeddings", "images": 300, "identities": 43, "enrolled": 294, "failures": 6,
            "failed": [f"{red}.jpg: holds nothing"], "distractors": 1000,
            "noise": {"mode": "drop", "images_removed": 1, "distractors_removed": 2}, "kind": "direct",
            "score": "cosine similarity", "shots": None, "models": {"embeddings": {red: {"sha256": blue}}},
            "files": {path: "ab" * 32},
        },
        "thresholds": {
            "pairs": {
                "score": 0.4, "kind": "fmr", "where": red, "wanted": 1e-3, "rate": 0.0009, "trials": 90_000,
                "supported": True,
            },
        },
        "overall": {metric: rate(events, trials) for metric, (events, trials) in METRICS.items()},
        "det": {"fmr": [0.001, 0.01], "fnmr": [0.2, 0.1], "threshold": [0.5, 0.4]},
        "groupings": [
            {
                "by": [by], "groups": groups,
                "across": [{"left": a, "right": b, **rate(3, 10_000)} for i, a in enumerate(names) for b in names[i:]],
                "det": [
                    {"group": name, "fmr": [0.001, 0.01, 0.1], "fnmr": [0.3, 0.2, 0.1], "threshold": [0.5, 0.4, 0.3]}
                    for name in names
                ],
                "disparities": [
                    disparity("gap", "rank1", 0.07), disparity("ratio", "fmr", 2.4),
                    disparity("ratio", "fpir", 1.0, True, f"no error in {red}: their upper bound is used"),
                    disparity("garbe", "fmr_fnmr", 0.3, True, f"no false match in {red}: their upper bound is used"),
                ],
                "contrasts": [contrast("rank1", *names[1::-1], 0.001, 0.005), contrast("fmr", *names[:2], 0.2, 0.2)],
            }
        ],
        "against": {
            "metric": "rank1", "other": red,
            "groupings": [
                {
                    "by": [by],
                    "rows": [
                        {
                            "group": names[0], "rate": 0.8, "other_rate": 0.85, "difference": 0.05, "low": 0.01,
                            "high": 0.09, "identities": 20, "small": False, **verdict(0.01, 0.02)[1],
                        }
                    ],
                }
            ],
        },
        "training": {
            "record": "train.rec", "files": {"train.rec": "cd" * 32}, "images": 500, "identities": 50,
            "bands": {"many": ">= 101", "medium": "20 to 100", "few": "<= 19"}, "convention": "paper",
            "not_grouped": [],
            "groupings": [
                {
                    "by": [by],
                    "groups": [
                        {
                            "group": names[0], "identities": 50, "images": 500, "share_of_images": 1.0,
                            "median_images": 3.5,
                            "bands": {band: {"identities": 1, "images": 2} for band in ("many", "medium", "few")},
                        }
                    ],
                }
            ],
        },
        "conditions": [
            condition("gap(rank1) > 0.05", "fails", "gap(rank1) > 0.05: gap(rank1) is 0.07"),
            condition("gap(rank1) > 0.5", "holds"),
            condition("ratio(fpir) > 2", "undecided", "ratio(fpir) > 2: ratio(fpir) is at least 1"),
        ],
    }  # fmt: skip


def write(values, out):
    return write_report(AuditReport.build(values), out)


def printed(values):
    console = Console(file=StringIO(), width=100)
    print_audit(AuditReport.build(values), console)
    return console.file.getvalue()


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def distribution(mean, shift, low=-0.25):
    """Scores with their five quantiles, the first of which is `low`."""
    values = (low, 0.2, 0.31, 0.42, 0.93)
    quantiles = dict(zip(("0.05", "0.25", "0.5", "0.75", "0.95"), values, strict=True))
    return {"pairs": 1234, "mean": mean, "shift": shift, "quantiles": quantiles}


NO_PAIRS = {
    "pairs": 0,
    "mean": None,
    "shift": None,
    "quantiles": dict.fromkeys(("0.05", "0.25", "0.5", "0.75", "0.95")),
}
TIMES = {"images": 40, "mean": 0.5127, "median": 0.4871, "quantile95": 1.938}


def test_distributions_times_and_open_set_points_are_on_the_page(tmp_path):
    values = make(red="<red>")
    values["scores"] = {"mated": distribution(0.6123, 0.0), "non_mated": distribution(0.0456, 0.0)}
    values["seconds"] = TIMES
    for number, of_group in enumerate(values["groupings"][0]["groups"]):
        of_group["scores"] = {"mated": distribution(0.6, 0.0789 - number), "non_mated": NO_PAIRS}
        of_group["seconds"] = TIMES | {"mean": 0.731} if number == 0 else None
    half = {"threshold": 0.4567, "fpir": 0.09, "fnir": 0.2, "false_positives": 12}
    point = {"wanted": 0.1, "fnir": 0.2345, "fpir": 0.09, "supported": False, "reason": None, "halves": [half, half]}
    missing = {"wanted": 0.003, "fnir": None, "fpir": None, "supported": False, "reason": "few & far", "halves": []}
    values["open_set"] = [point, missing]
    page = Page(write(values, tmp_path))
    for text in (
        "0.6123",
        "+0.0789",
        "-0.9211",
        "-0.250 · 0.200",
        "0.731",
        "23.45",
        "not measured: few & far",
        "<red>",
    ):
        assert text in page.text
    assert "too few searches for 30 false positives" in page.text
    scores = read_csv(tmp_path / "tables/scores.csv")
    assert [(row["group"], row["pairs"], row["mean"]) for row in scores[:3]] == [
        ("", "mated", "0.6123"), ("", "non_mated", "0.0456"), ("<red>", "mated", "0.6")
    ]  # fmt: skip
    assert [row["mean"] for row in read_csv(tmp_path / "tables/seconds.csv")] == ["0.5127", "0.731"]
    assert [row["fnir"] for row in read_csv(tmp_path / "tables/open_set.csv")] == ["0.2345", ""]


def test_the_page_maps_the_report_to_annex_iv_of_the_ai_act(tmp_path):
    values = make()
    full = Page(write(values, tmp_path / "full")).text
    values |= {"against": None, "training": None}
    plain = Page(write(values, tmp_path / "plain")).text
    for number, title in ((1, "General description"), (4, "Appropriateness"), (9, "Post-market monitoring")):
        assert f"{number} {title}" in full
    assert "the effect of another model by group" in full
    assert "the effect of another model by group" not in plain
    assert "composition of the training record" in full
    assert "composition of the training record" not in plain
    assert "no claim of conformity" in plain
    training = make() | {"subject": None, "groupings": [], "overall": {}, "thresholds": {}, "against": None}
    assert "Annex IV" not in Page(write(training, tmp_path / "training")).text


def test_the_files_of_a_report(tmp_path):
    path = write(make(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == make()
    names = {"rates", "groups", "across", "disparities", "contrasts", "det", "against", "training"}
    assert {file.stem for file in (tmp_path / "tables").iterdir()} == names
    assert path.name == "report.html"
    assert (tmp_path / "model_card.md").read_text().strip() == model_card(AuditReport.build(make()))
    rates = read_csv(tmp_path / "tables/rates.csv")
    assert len(rates) == 4 * len(METRICS)
    blue = next(row for row in rates if (row["group"], row["metric"]) == ("blue", "fnmr"))
    assert (blue["rate"], blue["events"], blue["trials"]) == ("0.17", "17.0", "100.0")


def test_the_page_says_what_was_found_and_what_not(tmp_path):
    page = Page(write(make(), tmp_path))
    text = " ".join(page.text.split())
    assert "Rank-1 rate: blue 87.00 %, red 80.00 %, a gap of 7.00 points" in text
    assert (
        "(95 % interval of the difference 1.0 to 15.0, p = 0.001; adjusted for all differences of the report 1.0 to "
        "16.7, p = 0.005): significant at 5 %." in text
    )
    assert "adjusted for all differences of the report -2.0 to 16.7, p = 0.2): not significant at 5 %." in text
    assert "significant if its adjusted p is below 0.05, and so if and only if its adjusted interval excludes 0" in text
    assert "Fails: gap(rank1) > 0.05: gap(rank1) is 0.07" in text
    assert "Holds: gap(rank1) > 0.5 is not met" in text
    assert "Undecided: ratio(fpir) > 2: ratio(fpir) is at least 1" in text
    classes = [attrs.get("class") for _, attrs in page.elements]
    assert [classes.count(f"note {name}") for name in ("failed", "held", "undecided")] == [1, 1, 1]
    assert "raretoo small to compare" in text
    assert "at least 10.333 or more" in text
    assert "upper bound is used" in text
    for label, value in (("Consent or legal basis", "asked"), ("Licence", "none"), ("Auditor", "not stated")):
        assert f"{label}{value}" in text
    assert "0.4000, set on red for FMR 0.1 %; FMR there is 0.09 % of 90,000" in text


def test_a_column_of_gender_brings_its_limits(tmp_path):
    assert "Gender is binary here" not in Page(write(make(), tmp_path / "group")).text
    assert "Gender is binary here" in Page(write(make(by="gender"), tmp_path / "gender")).text


def test_tables_have_headers_and_pictures_words(tmp_path):
    page = Page(write(make(), tmp_path))
    headers = [attrs for tag, attrs in page.elements if tag == "th"]
    assert headers
    assert all(attrs.get("scope") in ("col", "row", "colgroup") for attrs in headers)
    pictures = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("aria-hidden") != "true"]
    # Five metrics and the trade-off.
    assert len(pictures) == 6
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in pictures)
    label = next(attrs["aria-label"] for attrs in pictures if "rank-1" in attrs["aria-label"])
    assert "red 80.00 percent" in label
    assert "rare * 83.00 percent" in label
    regions = [attrs for tag, attrs in page.elements if attrs.get("role") == "region"]
    assert all(attrs["aria-label"] and attrs["tabindex"] == "0" for attrs in regions)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_nothing_in_a_name_runs_or_loads(tmp_path):
    script, formula = '<script>alert("x")</script>', "=cmd()|'/c calc'!A1"
    odd = "$\\frac{$ [red]&amp;\x1b[31m\x00\ud800"
    report = make(script + odd, formula, by=script, title=script, path=script)
    page = Page(write(report, tmp_path))
    assert not [tag for tag, _ in page.elements if tag in ("script", "img", "iframe", "object")]
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    addresses = [value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href")]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in source
    assert "\x00" not in source
    for table in (tmp_path / "tables").iterdir():
        for row in csv.reader(StringIO(table.read_text(encoding="utf-8"))):
            assert not [cell for cell in row if cell.startswith("=")]
    assert "\x1b" not in printed(report)
    assert "[red]" in printed(report)


def test_a_training_record_alone_is_a_report(tmp_path):
    report = make() | {"subject": None, "groupings": [], "thresholds": {}, "overall": {}, "against": None}
    page = Page(write(report | {"conditions": []}, tmp_path))
    assert "Composition of the training data" in page.text
    assert {file.stem for file in (tmp_path / "tables").iterdir()} == {"training"}


def test_a_report_that_lacks_a_key_is_refused(tmp_path):
    report = make()
    del report["groupings"][0]["contrasts"]
    with pytest.raises(ValueError, match=r"groupings\[0\] lacks contrasts \(schema facelt.audit/1\)"):
        write(report, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_terminal_has_each_group_and_each_gap():
    out = printed(make())
    assert "By hat" in out
    assert "too small" in out
    assert "a gap of 7.00 points" in out
    assert "at least 1" in out
    assert "0.333 or more" in out
    assert "FMR and FNMR together: GARBE at least 0.3 (0.1 or more)." in out
    assert "500 (50)" in out


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.83024, "83.02"),
        (1.0, "100.00"),
        (0.01, "1.00"),
        (0.00123, "0.12"),
        (5e-5, "0.005"),
        (0, "0"),
        (-0.05, "-5.00"),
    ],
)
def test_rates_keep_the_digits_that_matter(rate, text):
    assert small_percent(rate) == text


def test_words():
    assert small_percent(None) == "\N{EN DASH}"
    assert small_percent_interval(0.745, 0.8914) == "74.5\N{EN DASH}89.1"
    assert small_percent_interval(-0.055, 0.2) == "-5.5 to 20.0"
    assert small_percent_interval(None, None) == ""
    assert p_value(0.14492) == "0.14"
    assert disparity_text(DisparityEntry(**disparity("ratio", "fmr", 2.4, True))) == "at least 2.4"
    assert disparity_text(DisparityEntry(**disparity("gap", "fmr", 0.07))) == "7.00 points"
    assert disparity_interval(DisparityEntry(**disparity("ratio", "fmr", 2.4, True))) == "0.8 or more"
    assert disparity_text(DisparityEntry(**disparity("worst", "rank1", 0.784, note="in f"))) == "78.40 %"


@pytest.mark.parametrize(
    ("values", "text", "cell"),
    [
        ((0.001, 0.005), "significant at 5 %", "yes"),
        ((0.001, 0.06), "not significant at 5 %", "no"),
        ((0.02, 0.3, 0.0899), "undecidable with 40 people: the smallest adjusted p they can reach is 0.09", None),
        ((0.02, 0.3, 0.049), "not significant at 5 %", "no"),
        ((None, None), "nothing to compare", None),
    ],
)
def test_a_difference_that_so_few_people_cannot_decide_is_undecidable(values, text, cell):
    difference = ContrastEntry(**contrast("fmr", ["a"], ["b"], *values))
    assert significance_text(difference, 0.95) == text
    assert table_verdict(difference, 0.95) == (cell or text)


def test_the_terminal_has_the_verdict_on_another_model():
    report = make()
    assert "  significant at 5 %" in printed(report)
    report["against"]["groupings"][0]["rows"][0] |= verdict(0.1, 0.2, smallest=0.06)[1]
    assert "undecidable with 20 people" in printed(report)
