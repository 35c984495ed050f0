"""Output folders: refused unless new or empty, replaced whole, and the same as before after an error or a kill."""

import os
import signal
import subprocess
import sys

import pytest

from facelt.errors import UserError
from facelt.utils.output_folder import output_folder

FILES = ("report.json", "page.html", "tables/*.csv", "parts/*.npz", "parts/*.partial")


def contents(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(out, overwrite=False, **files) -> None:
    with output_folder(out, FILES, overwrite, schema="facelt.audit/1", kept="parts") as folder:
        (folder / "tables").mkdir()
        for name, text in files.items():
            (folder / f"tables/{name}.csv").write_text(text)
        (folder / "report.json").write_text('{"schema": "facelt.audit/1"}')


def write_half(out) -> None:
    with output_folder(out, FILES, overwrite=True) as folder:
        (folder / "report.json").write_text("half")
        raise ZeroDivisionError


@pytest.fixture
def report(tmp_path):
    """A report with the tables a and b, alone in its parent folder."""
    write(tmp_path / "reports/out", a="1", b="2")
    return tmp_path / "reports/out"


def test_a_new_or_empty_folder_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        write(tmp_path / name, a="1")
        assert contents(tmp_path / name) == {"report.json": '{"schema": "facelt.audit/1"}', "tables/a.csv": "1"}


def test_a_report_is_refused_without_overwrite_and_replaced_whole_with_it(report):
    before = contents(report)
    with pytest.raises(UserError, match=r"out: exists already and is not empty; .* replace this one with --overwrite"):
        write(report, c="3")
    assert contents(report) == before
    write(report, overwrite=True, c="3")
    assert set(contents(report)) == {"report.json", "tables/c.csv"}
    assert list(report.parent.iterdir()) == [report]


@pytest.mark.parametrize("name", ["notes.txt", "tables/notes.txt", "tables/more/a.csv", "other/tables/a.csv", "a.csv"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_any_other_file_is_never_replaced(report, name, overwrite):
    (report / name).parent.mkdir(exist_ok=True, parents=True)
    (report / name).write_text("mine")
    before = contents(report)
    message = rf"out: holds {name}, which this command does not write; choose a new or empty folder"
    with pytest.raises(UserError, match=message):
        write(report, overwrite, c="3")
    assert contents(report) == before


def test_a_link_in_the_folder_is_another_file(report, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/photo").write_text("mine")
    (report / "tables/linked").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="holds tables/linked"):
        write(report, overwrite=True)
    assert (tmp_path / "precious/photo").exists()


def test_a_file_that_another_program_writes_meanwhile_is_kept(report):
    with (
        pytest.raises(UserError, match=r"holds late\.txt"),
        output_folder(report, FILES, overwrite=True),
    ):
        (report / "late.txt").write_text("mine")
    assert set(contents(report)) == {"report.json", "tables/a.csv", "tables/b.csv", "late.txt"}


@pytest.mark.parametrize(
    "text", ['{"schema": "facelt.megaface/1"}', "{}", "", '{"title": "\\"schema\\": facelt.audit/1"}']
)
def test_a_report_of_another_kind_is_never_replaced(report, text):
    (report / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json: is another report than this command's"):
        write(report, overwrite=True)


def test_the_report_of_an_earlier_version_is_replaced(report):
    (report / "report.json").write_text('{\n "schema": "facelt.audit/0"}')
    write(report, overwrite=True, c="3")
    assert "tables/c.csv" in contents(report)


def test_an_error_midway_leaves_the_old_report_and_nothing_else(report):
    before = contents(report)
    with pytest.raises(ZeroDivisionError):
        write_half(report)
    assert contents(report) == before
    assert list(report.parent.iterdir()) == [report]


def test_a_kill_midway_leaves_the_old_report_and_the_next_run_clears_up(report):
    before = contents(report)
    code = f"""
from pathlib import Path
from facelt.utils.output_folder import output_folder
with output_folder(Path({str(report)!r}), {FILES!r}, overwrite=True) as folder:
    (folder / "page.html").write_text("half")
    print("written", flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "written\n"
        with pytest.raises(UserError, match="is writing to it"):
            write(report, overwrite=True)
        process.send_signal(signal.SIGKILL)
    assert contents(report) == before
    assert len(list(report.parent.iterdir())) > 1
    write(report, overwrite=True, c="3")
    assert list(report.parent.iterdir()) == [report]


@pytest.mark.parametrize("has_links", [True, False])
def test_intermediate_results_alone_are_an_interrupted_run_and_are_kept(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts/1.npz").write_text("one")
    (out / "parts/.2.npz.3.partial").write_text("half")
    write(out, a="1")
    assert set(contents(out)) == {"report.json", "tables/a.csv", "parts/1.npz"}
    with pytest.raises(UserError, match="--overwrite"):
        write(out, b="2")
    with output_folder(out, FILES, overwrite=True, kept="parts") as folder:
        (out / "parts/2.npz").write_text("two")
        (folder / "page.html").write_text("new")
    assert contents(out) == {"page.html": "new", "parts/1.npz": "one", "parts/2.npz": "two"}
