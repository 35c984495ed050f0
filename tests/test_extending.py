"""Diffs of docs/extending.md: applied to a copy of the project, tested and trained for two steps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tests.test_registries import REGISTRIES, UNDOCUMENTED

COPIED = ("facelt", "recordio_tools", "eval_megaface", "tests", "configs", "docs", "pyproject.toml")
FILES = {"A loss": 2, "A method": 4, "A backbone": 2, "A list data set": 1}
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def diffs_of(text: str) -> dict[str, str]:
    """The diff of each section of the document, by the section's title."""
    sections = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    bodies = zip(sections[1::2], sections[2::2], strict=True)
    return {title: re.search(r"```diff\n(.*?)```", body, re.DOTALL)[1] for title, body in bodies}


@pytest.fixture(scope="module")
def extended(root, tmp_path_factory) -> Path:
    """A copy of the project with all diffs applied."""
    copy = tmp_path_factory.mktemp("extended") / "facelt"
    copy.mkdir()
    for name in COPIED:
        source, ignore = root / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / name)
    for title, diff in diffs_of((root / "docs/extending.md").read_text()).items():
        assert len(re.findall(r"^\+\+\+ b/", diff, re.MULTILINE)) == FILES[title]
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=copy, check=True)
    return copy


def run_in(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses_of(run: Path) -> dict[str, list[float]]:
    """The loss of every step, by stage."""
    losses: dict[str, list[float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "loss" in values:
            losses.setdefault(values["stage"], []).append(values["loss"])
    return losses


def test_the_tests_in_the_diffs_pass(extended, root):
    text = (root / "docs/extending.md").read_text()
    tests = re.findall(r"^\+\+\+ b/(tests/.*)$", text, re.MULTILINE)
    assert len(tests) == 3
    assert "3 passed" in run_in(extended, *PYTEST, *tests)


def test_the_project_with_the_diffs_is_documented_and_has_files_of_the_usual_size(extended):
    run_in(extended, "-m", "facelt", "bench")
    files = ("test_layers", "test_registries", "training/test_cifar_recipes", "benchmarking/test_table")
    names = "module_counts or registered_name_is_documented or every_method_has_a_recipe or page_in_the_docs"
    output = run_in(extended, *PYTEST, *(f"tests/{name}.py" for name in files), "-k", names)
    assert f"{3 + len(REGISTRIES) - len(UNDOCUMENTED)} passed" in output


TRAIN = """
import json, sys
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.training.run import run
for path, settings in json.loads(sys.argv[1]):
    run(load_config(path, TrainConfig, settings))
"""


def test_all_four_train_for_two_steps(extended, recipe, tmp_path):
    stages = [
        {"name": "loss", "method": {"name": "classify", "loss": {"name": "poly1", "epsilon": 2.0}}, "epochs": 1},
        {"name": "method", "method": {"name": "ring_loss", "weight": 0.1}, "epochs": 1},
    ]
    model = {"backbone": "mobilenet_v3_small", "dim": 16}
    values = recipe(tmp_path / "faces", stages=stages, model=model, optim={"lr": 0.01, "batch": 16})
    (tmp_path / "faces.yaml").write_text(yaml.safe_dump(values))
    for name, count in (("train", 8), ("validation", 2), ("test", 2)):
        paths = [tmp_path / f"{name}{number}.png" for number in range(count)]
        for number, path in enumerate(paths):
            cv2.imwrite(str(path), np.full((40, 40, 3), 20 * number, dtype=np.uint8))
        lines = [f"{path.name} {number % 2}\n" for number, path in enumerate(paths)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    settings = [f"out={tmp_path / 'birds'}", "device=cpu", f"data.root={tmp_path}", "data.crop=32", "data.resize=36"]
    settings += [f"data.{name}={tmp_path / f'{name}.txt'}" for name in ("train", "validation", "test")]
    settings += ["data.workers=0", "model.backbone=resnet10", "optim.batch=4", "log_every=1", "stages.0.epochs=1"]
    recipes = [(str(tmp_path / "faces.yaml"), []), ("configs/birds_lt.yaml", settings)]
    run_in(extended, "-c", TRAIN, json.dumps(recipes))
    losses = losses_of(tmp_path / "faces") | losses_of(tmp_path / "birds")
    assert {stage: len(steps) for stage, steps in losses.items()} == {"loss": 2, "method": 2, "plain": 2}
    assert all(np.isfinite(steps).all() for steps in losses.values())
