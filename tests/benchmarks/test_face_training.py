"""Variants of face training: each is a valid recipe that changes one thing of the baseline."""

import csv

import numpy as np
import pytest

from benchmarks import face_training
from benchmarks.face_training import BASELINE, RECIPE_CHANGES, changed_recipe, write_manifest
from facelt.config.train import TrainConfig
from facelt.data.records import RecordData, RecordDataset
from recordio_tools.face_set import FaceRecord


@pytest.fixture
def without_manifests(monkeypatch):
    written = []
    monkeypatch.setattr(face_training, "write_manifest", lambda *arguments: written.append(arguments))
    return written


@pytest.mark.parametrize("name", RECIPE_CHANGES)
def test_every_variant_is_a_valid_recipe_that_changes_one_thing(name, tmp_path, without_manifests):
    baseline, recipe = changed_recipe(tmp_path, BASELINE), changed_recipe(tmp_path, name)
    assert recipe.keys() == baseline.keys()
    assert sum(recipe[key] != baseline[key] for key in recipe.keys() - {"out"}) == (name != BASELINE)
    config = TrainConfig.model_validate(recipe)
    assert config.out == tmp_path / name
    assert len(without_manifests) == ("part" in RECIPE_CHANGES[name])
    (stage,) = config.stages
    assert stage.keep == "last"
    assert stage.init_from == (str(tmp_path / BASELINE / "model") if RECIPE_CHANGES[name].get("continued") else None)


def manifest_labels(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return tuple(np.array([int(row[column]) for row in rows]) for column in ("key", "label", "new_label"))


def test_a_manifest_selects_a_part_of_the_identities_or_of_their_images(tiny_faces, tmp_path):
    with FaceRecord(tiny_faces) as faces:
        label_of, counts = dict(zip(faces.image_keys.tolist(), faces.labels.tolist(), strict=True)), faces.counts
    path = tmp_path / "new/part.csv"
    write_manifest(path, tiny_faces, "identities", 0.5)
    keys, labels, new_labels = manifest_labels(path)
    chosen = np.unique(labels)
    assert len(chosen) == round(0.5 * np.count_nonzero(counts))
    assert len(keys) == counts[chosen].sum()
    assert np.unique(new_labels).tolist() == list(range(len(chosen)))

    write_manifest(path, tiny_faces, "images", 0.5)
    keys, labels, _ = manifest_labels(path)
    expected = np.where(counts > 0, np.maximum(1, np.round(0.5 * counts)), 0)
    assert np.bincount(labels, minlength=len(counts)).tolist() == expected.tolist()
    assert [label_of[key] for key in keys.tolist()] == labels.tolist()
    # The training data read it.
    settings = RecordData(kind="record", train=tiny_faces, manifest=path, validation_fraction=0.0)
    assert isinstance(settings.open(seed=0).train.dataset, RecordDataset)
