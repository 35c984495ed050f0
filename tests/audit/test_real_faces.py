"""Audit of the public MobileFaceNet on real faces against independently computed figures."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from facelt.store.writer import StoreWriter

# Nothing of the training side may be needed: these packages cannot be imported.
WITHOUT_TORCH = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ("torch", "torchvision", "tensorboard", "safetensors")
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
from facelt.cli.main import main
main()
"""


def store(path: Path, keys, identities, value_ND) -> str:
    meta = {"model": {"name": "MobileFaceNet"}, "preprocessing": "112x112, aligned"}
    writer = StoreWriter(path, keys, identities, {"direct": value_ND.shape[1]}, meta)
    writer.write(0, {"direct": value_ND})
    return str(writer.finish())


@pytest.fixture(scope="module")
def finished(real_data, tmp_path_factory, root):
    """The finished process of an audit and its report's folder."""
    folder = tmp_path_factory.mktemp("real")
    faces = np.load(real_data / "faces/embeddings.npz", allow_pickle=False)
    probes, distractors = (faces[f"{name}_paths"].tolist() for name in ("facescrub", "megaface"))
    people = [path.partition("/")[0] for path in probes]
    suite = real_data / "faces/megaface"
    labels = [str(label) for label in faces["train_labels"]]
    settings = {
        "out": str(folder / "report"),
        "by": [["gender"], ["shots"]],
        "embeddings": {
            "path": store(folder / "probes", probes, people, faces["facescrub"]),
            "noises": str(suite / "facescrub_noises.txt"),
        },
        "gallery": {
            "path": store(folder / "gallery", distractors, ["distractor"] * len(distractors), faces["megaface"]),
            "noises": str(suite / "megaface_noises.txt"),
        },
        "attributes": {
            "actors": str(suite / "facescrub_actors.txt"),
            "actresses": str(suite / "facescrub_actresses.txt"),
        },
        "shots": {
            "train": store(folder / "train", [str(index) for index in range(len(labels))], labels, faces["train"]),
            "threshold": 0.4,
        },
        "training": {"record": str(real_data / "faces/train/train.rec")},
        "fail_if": ["gap(rank1, by=gender) > 0.05"],
    }
    (folder / "audit.yaml").write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "audit", "--config", str(folder / "audit.yaml")],
        capture_output=True, text=True, timeout=300, cwd=root,
    )  # fmt: skip
    return done, folder / "report"


@pytest.fixture(scope="module")
def report(finished):
    return json.loads((finished[1] / "report.json").read_text())


@pytest.fixture(scope="module")
def expected(real_data):
    return json.loads((real_data / "faces/megaface/expected.json").read_text())["modes"]["drop"]["0.4"]


def exact_p(folder, gap):
    """The fraction of all 3,432 splits of the 14 people into 7 and 7 with a gap at least as large, by plain loops."""
    faces = np.load(folder / "embeddings.npz", allow_pickle=False)
    noisy, noisy_distractors = (
        {line for line in (folder / "megaface" / name).read_text().splitlines() if not line.startswith("#")}
        for name in ("facescrub_noises.txt", "megaface_noises.txt")
    )
    probes = [index for index, path in enumerate(faces["facescrub_paths"]) if path.partition("/")[2] not in noisy]
    distractors = [index for index, path in enumerate(faces["megaface_paths"]) if path not in noisy_distractors]
    probe, distractor = faces["facescrub"][probes].astype(np.float64), faces["megaface"][distractors].astype(np.float64)
    probe, distractor = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (probe, distractor))
    best = (probe @ distractor.T).max(axis=1)
    people = np.array([path.partition("/")[0] for path in faces["facescrub_paths"][probes]])
    hits, pairs = [], []
    for person in np.unique(people):
        own = people == person
        score = probe[own] @ probe[own].T
        hits.append((score >= best[own][:, None]).sum() - own.sum())
        pairs.append(own.sum() * (own.sum() - 1))
    hits, pairs = np.array(hits), np.array(pairs)
    gaps = []
    for chosen in itertools.combinations(range(14), 7):
        rest = [index for index in range(14) if index not in chosen]
        first, second = (hits[list(part)].sum() / pairs[list(part)].sum() for part in (chosen, rest))
        gaps.append(abs(first - second))
    return np.mean(np.array(gaps) >= gap - 1e-9)


def rank_one(report, by):
    grouping = next(section for section in report["groupings"] if section["by"] == by)
    return {group["group"][0]: group["rates"]["rank1"] for group in grouping["groups"]}


def test_without_torch_the_audit_exits_with_the_undecided_condition(finished):
    done, folder = finished
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "undecided: gap(rank1, by=gender) > 0.05: gap(rank1, by=gender) is 0.08698, limits 0 and 0.2591"
    )
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "Traceback" not in done.stderr


def test_rank1_overall_and_by_gender(report, expected):
    overall, gender = report["overall"]["rank1"], rank_one(report, ["gender"])
    result = [overall, gender["male"], gender["female"]]
    assert [round(estimate["rate"], 4) for estimate in result] == [0.8302, 0.8712, 0.7842]
    for estimate, name in zip(result, ("rank1", "male", "female"), strict=True):
        assert estimate["rate"] == pytest.approx(expected[name]["rate"])
        assert estimate["trials"] == expected[name]["pairs"]
        assert estimate["low"] < estimate["rate"] < estimate["high"]
    assert (overall["identities"], gender["male"]["identities"], gender["female"]["identities"]) == (14, 7, 7)


def test_rank1_by_pseudo_shots(report, expected):
    result = rank_one(report, ["shots"])
    for band in ("many", "few", "one", "zero"):
        assert result[band]["rate"] == pytest.approx(expected[band]["rate"])
        assert result[band]["trials"] == expected[band]["pairs"]


def test_the_gap_of_fourteen_people_is_not_significant_and_the_report_says_so(finished, report, real_data):
    contrast = next(row for row in report["groupings"][0]["contrasts"] if row["metric"] == "rank1")
    assert contrast["difference"] == pytest.approx(0.0870, abs=5e-5)
    assert contrast["low"] < 0 < contrast["high"]
    # The exact test of the hypothesis that the genders do not matter at all is another one, and agrees.
    assert contrast["p"] == pytest.approx(exact_p(real_data / "faces", contrast["difference"]), abs=0.1)
    assert contrast["adjusted_p"] >= contrast["p"]
    assert 0.05 < contrast["smallest_p"] < 1
    smallest = f"{contrast['smallest_p']:.2g}"
    for name in ("report.html", "model_card.md"):
        text = (finished[1] / name).read_text()
        assert "Rank-1 rate: male 87.12 %, female 78.42 %, a gap of 8.70 points" in text
        # Among so many differences not even the largest one of 14 people would have been significant.
        assert f"undecidable with 14 people: the smallest adjusted p they can reach is {smallest}" in text


def test_every_interval_excludes_0_if_and_only_if_its_p_is_below_5_percent(report):
    contrasts = [row for grouping in report["groupings"] for row in grouping["contrasts"]]
    assert len(contrasts) > 20
    for row in contrasts:
        assert (row["low"] > 0 or row["high"] < 0) == (row["p"] < 0.05)
        assert (row["adjusted_low"] > 0 or row["adjusted_high"] < 0) == (row["adjusted_p"] < 0.05) == row["decided"]


def test_the_training_record_is_counted_as_its_table_says(report, real_data):
    with (real_data / "faces/train/identities.csv").open() as file:
        rows = list(csv.DictReader(file))
    groups = {group["group"][0]: group for group in report["training"]["groupings"][0]["groups"]}
    for name, group in groups.items():
        images = [int(row["images"]) for row in rows if row["gender"] == name]
        assert (group["images"], group["identities"]) == (sum(images), len(images))
        assert group["bands"]["many"]["images"] == sum(number for number in images if number > 100)
        assert group["bands"]["few"]["identities"] == sum(number < 20 for number in images)
    assert report["training"]["not_grouped"] == ["shots"]
