"""Demo: a small copy runs through the real commands, and the notebook of docs/ runs on its results."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from facelt.cli import demo as demo_module
from facelt.cli.demo import commands, demo
from facelt.errors import UserError
from tests.notebook import execute, output_kinds, read_notebook


@contextlib.contextmanager
def stdout_in(path: Path) -> Iterator[None]:
    """Writes what this process and its subprocesses print to a file; capfd does so for single tests only."""
    kept = os.dup(1)
    with path.open("w") as file, contextlib.redirect_stdout(file):
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory) -> tuple[Path, str]:
    """Folder `runs/demo` of a finished small demo, and its output."""
    folder = tmp_path_factory.mktemp("small_demo")
    out, printed = folder / "runs" / "demo", folder / "stdout"
    with pytest.MonkeyPatch.context() as patch, stdout_in(printed):
        for name, value in {
            "TRAINING_SET": {"identities": 24, "images_per_identity": 9.0, "size": 64},
            "SELECTION": {"images": 130, "identities": 20},
            "_PROBE_IDENTITIES": 4,
            "_IMAGES_PER_PROBE": 4,
            "_DISTRACTORS": (10, 40),
        }.items():
            patch.setattr(demo_module, name, value)
        demo(out, seed=0)
    return out, printed.read_text()


def test_the_demo_measures_both_models(small_demo):
    out, printed = small_demo
    report = json.loads((out / "report" / "report.json").read_text())
    rows = report["rows"]
    assert [(row["model"], row["kind"]) for row in rows] == [
        ("plain_long", "direct"),
        ("oltr", "direct"),
        ("oltr", "meta"),
        ("oltr", "meta_unit"),
    ]
    assert {figure["name"] for figure in rows[0]["figures"]} == {
        *["many", "few", "one", "zero", "full", "male", "female"]
    }
    assert all(row["sentence"] in " ".join(printed.split()) for row in report["comparison"]["rows"])
    known = json.loads((out / "known_people" / "report.json").read_text())
    assert [model["name"] for model in known["models"]] == ["run/plain_long", "run/oltr"]
    assert {score["score"] for score in known["scores"]} >= {"class_mean", "softmax", "reachability"}
    assert (out / "known_people" / "report.html").is_file()
    assert "synthetic" in printed
    assert str(out / "report" / "report.html") in printed


def test_the_notebook_runs_on_the_demo(small_demo):
    out, _ = small_demo
    notebook = read_notebook()
    executed = execute(notebook, out.parent.parent)
    assert [output_kinds(cell) for cell in executed.cells] == [output_kinds(cell) for cell in notebook.cells]
    texts = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert "35 distractors" in texts
    assert "2 people enrolled" in texts


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path):
    kept = tmp_path / "mine.txt"
    kept.write_text("keep")
    with pytest.raises(UserError, match="was not made by the demo"):
        demo(tmp_path)
    assert kept.read_text() == "keep"


def test_the_commands_need_no_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = [" ".join(command) for command in commands(Path("runs/demo"), 0)]
    assert lines[0].startswith("python -m recordio_tools sample runs/demo/faces/train.rec")
    assert lines[1].startswith("python -m facelt train demo --set out=runs/demo/run")
    assert lines[-2].startswith("python -m facelt megaface demo_megaface --out runs/demo/report")
    assert lines[-1].startswith("python -m facelt evaluate --checkpoint runs/demo/run/plain_long")
    assert sum(line.startswith("python -m facelt embed") for line in lines) == 5
