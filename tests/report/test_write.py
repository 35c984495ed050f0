"""Written MegaFace report: equal figures in every file, a self-contained page, tables, atomic replacement."""

import csv
import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.report.known_people_schema import KnownPeopleReport
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.write import report_folder, write_report
from facelt.utils.json_values import to_json_values


class Page(HTMLParser):
    """Collects a page's elements and its visible text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def write(values, out, **options):
    return write_report(MegafaceReport.build(values), out, **options)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_json_is_the_report_and_the_page_is_returned(report, tmp_path):
    path = write(report, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert json.loads(path.with_name("report.json").read_text(encoding="utf-8")) == report
    names = sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file())
    assert names == ["report.html", "report.json", "tables/cmc.csv", "tables/figures.csv", "tables/rate_by_size.csv"]


def test_the_tables_hold_every_figure(report, tmp_path):
    folder = write(report, tmp_path).parent / "tables"
    figures = read_csv(folder / "figures.csv")
    expected = [(row, figure) for row in report["rows"] for figure in row["figures"]]
    assert len(figures) == len(expected)
    for result, (row, figure) in zip(figures, expected, strict=True):
        assert (result["model"], result["kind"], result["name"]) == (row["model"], row["kind"], figure["name"])
        assert result["rate"] == ("" if figure["rate"] is None else repr(figure["rate"]))
        assert int(result["pairs"]) == figure["pairs"]
    sizes = read_csv(folder / "rate_by_size.csv")
    assert [float(line["rate"]) for line in sizes] == [rate for curve in report["curves"] for rate in curve["rate"]]
    assert len(read_csv(folder / "cmc.csv")) == 60


def test_the_page_shows_rates_counts_and_intervals(report, tmp_path):
    page = Page(write(report, tmp_path))
    for words in ("83.02", "78.0\N{EN DASH}88.0", "26,202", "607", "Synthetic faces.", "ab" * 32, "under 40", "85.02"):
        assert words in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_the_page_is_one_offline_file(report, tmp_path):
    page = Page(write(report, tmp_path))
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert not page.all("script")
    assert not page.all("img")
    assert not page.all("iframe")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert all(attrs.get("href", "#").startswith(("#", "data:,")) for _, attrs in page.elements)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))


def test_the_page_can_be_read_aloud(report, tmp_path):
    page = Page(write(report, tmp_path))
    assert all(header.get("scope") for header in page.all("th"))
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == 4
    assert all(len(svg["aria-label"]) > 40 for svg in drawings)
    assert all(svg.get("aria-hidden") == "true" for svg in page.all("svg") if svg not in drawings)
    assert page.all("html") == [{"lang": "en"}]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_hostile_names_run_nowhere(hostile, tmp_path):
    path = write(hostile, tmp_path)
    page = Page(path)
    assert not page.all("script")
    assert "<script>" in page.text
    assert not {"\x00", "\x1b"} & set(page.source)
    rows = list(csv.reader((path.parent / "tables" / "figures.csv").open(encoding="utf-8", newline="")))
    assert any("=cmd()" in cell for row in rows for cell in row)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert json.loads((path.parent / "report.json").read_text(encoding="utf-8"))["title"] == hostile["title"]


def test_a_report_with_nothing_measured_is_still_a_page(report, tmp_path):
    report |= {"rows": [], "curves": [], "cmc": [], "models": {}, "notes": []}
    page = Page(write(report, tmp_path))
    assert "Definitions" in page.text
    assert not [svg for svg in page.all("svg") if svg.get("role") == "img"]


@pytest.mark.parametrize("mode", ["drop", "raw", "insightface"])
def test_the_noise_mode_is_explained(report, tmp_path, mode):
    report["suite"]["noise"] |= {"mode": mode, "probes_replaced": 3}
    text = " ".join(Page(write(report, tmp_path)).text.split())
    assert {
        "drop": "excluded: 7 probes and 25 distractors",
        "raw": "The noise lists are ignored",
        "insightface": "3 noisy probes were replaced",
    }[mode] in text


def test_several_gallery_sizes_are_labelled(report, tmp_path):
    report["rows"] += [{**row, "distractors": 1000} for row in report["rows"]]
    text = Page(write(report, tmp_path)).text
    assert "rank 1, 6,732" in text
    assert "rank 1, 1,000" in text


def test_numpy_values_are_taken_and_nan_becomes_null(report, tmp_path):
    report["rows"][0]["figures"][0]["rate"] = np.float64(0.5)
    report["rows"][0]["figures"][0]["pairs"] = np.int64(7)
    report["rows"][0]["figures"][1]["rate"] = float("nan")
    report["cmc"][0]["rate"] = np.linspace(0.5, 0.9, 20)
    saved = json.loads(write(report, tmp_path).with_name("report.json").read_text(encoding="utf-8"))
    figures = saved["rows"][0]["figures"]
    assert (figures[0]["rate"], figures[0]["pairs"], figures[1]["rate"]) == (0.5, 7, None)
    assert saved["cmc"][0]["rate"][-1] == 0.9


def test_plain_names_the_place_of_what_it_cannot_hold():
    assert to_json_values({"a": (1, np.array([math.inf, 2.0]), True)}) == {"a": [1, [None, 2.0], True]}
    with pytest.raises(TypeError, match=r"report\.a\[1\] holds a set"):
        to_json_values({"a": [1, {2}]})


def test_an_unknown_schema_or_a_missing_key_is_named(report, tmp_path):
    with pytest.raises(ValueError, match=r"facelt\.other/9.*facelt\.megaface/1"):
        write({**report, "schema": "facelt.other/9"}, tmp_path)
    del report["rows"][1]["figures"][2]["pairs"]
    with pytest.raises(ValueError, match=r"rows\[1\]\.figures\[2\] lacks pairs"):
        write(report, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_line(report, tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*taken"):
        write(report, tmp_path / "taken")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(report, tmp_path, monkeypatch):
    page = write(report, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recordio_tools.atomic_io.os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write({**report, "title": "Another"}, tmp_path, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert page.exists()


def test_a_report_is_replaced_whole_and_only_on_demand(report, tmp_path):
    out = tmp_path / "out"
    page = write(report, out)
    (out / "tables/comparison.csv").write_text("of another run")
    before = page.read_bytes()
    with pytest.raises(UserError, match=r"is not empty; .* replace this one with --overwrite"):
        write({**report, "title": "Another"}, out)
    assert page.read_bytes() == before
    write({**report, "title": "Another"}, out, overwrite=True)
    assert "Another" in page.read_text(encoding="utf-8")
    names = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert names == {"report.html", "report.json", "tables/cmc.csv", "tables/figures.csv", "tables/rate_by_size.csv"}


def test_the_report_of_another_command_is_never_replaced(report, tmp_path):
    page = write(report, tmp_path / "out")
    with (
        pytest.raises(UserError, match=r"report\.json: is another report than this command's"),
        report_folder(KnownPeopleReport, tmp_path / "out", overwrite=True),
    ):
        raise AssertionError("is refused first")
    assert page.exists()


def test_equal_reports_are_equal_files(report, tmp_path):
    first, second = (write(report, tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_importing_the_package_loads_nothing_heavy():
    heavy = "matplotlib jinja2 torch faiss"
    code = f"import sys, facelt.report; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
