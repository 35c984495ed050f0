"""Wheel: what is built from the sources works in an empty folder without the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import facelt

pytest.importorskip("setuptools", minversion="77")
SOURCES = ("facelt", "recordio_tools", "eval_megaface", "configs")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources; a build writes into its folder."""
    root, copy = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(root / name, copy / name)
    words = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", copy / "dist", copy)
    pip("wheel", *words)
    (built,) = (copy / "dist").glob("facelt-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--quiet", "--no-compile", "--target", folder, wheel)
    return folder


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def run(installed, tmp_path, monkeypatch):
    """run(*words) -> a Python process in an empty folder, with the installed package only."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def call(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=folder, env=environment)

    return call


def test_the_wheel_carries_the_recipes_and_the_data_files(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"facelt/{path.relative_to(root)}" for path in (root / "configs").rglob("*.yaml")}
    assert recipes <= names
    assert {"facelt/py.typed", "facelt/benchmarking/published.yaml"} <= names
    assert {f"facelt/report/templates/{path.name}" for path in (root / "facelt/report/templates").iterdir()} <= names
    # Nothing else at the top of site-packages.
    assert {re.split("[/-]", name)[0] for name in names} == {"facelt", "recordio_tools", "eval_megaface"}


def test_recipes_are_found_by_name_in_an_empty_folder(run, installed, root):
    """No configuration of a training run is validated here: that loads torch."""
    program = """
from pathlib import Path
import facelt
from facelt.benchmarking.records import read_published, source_commit
from facelt.cli.demo import commands
from facelt.config.audit import AuditConfig
from facelt.config.loading import load_config, read_layers
from facelt.config.recipes import CHECKOUT, recipe_names
print(facelt.__file__, facelt.__version__, CHECKOUT, source_commit(CHECKOUT))
print(len(recipe_names()), load_config("audit_scores", AuditConfig).scores, len(read_published()) > 10)
print(read_layers("cifar100_lt/ldam").values()["data"]["kind"])
print(*commands(Path("runs/demo"), 0)[1])
"""
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    version = facelt.__version__
    assert lines[0] == f"{installed / 'facelt' / '__init__.py'} {version} None facelt {version}"
    assert lines[1] == f"{len(list((root / 'configs').rglob('*.yaml')))} data/scores.csv True"
    assert lines[2] == "cifar"
    assert lines[3].startswith("python -m facelt train demo --set out=runs/demo/run")


def test_recipes_are_listed_and_other_commands_named_in_an_empty_folder(run):
    result = run("-m", "facelt", "recipes")
    assert result.returncode == 0, result.stderr
    assert "cifar100_lt/ldam " in result.stdout
    result = run("-m", "facelt", "megaface", "audit_scores")
    assert result.stderr == (
        "error: audit_scores: this is a configuration of `facelt audit`: facelt audit --config audit_scores\n"
    )
