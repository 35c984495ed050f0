"""Provenance in checkpoints and cards; checkpoints of other data are refused."""

import hashlib
import json
import platform
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch

from facelt.data.image_files import ListData
from facelt.errors import UserError
from facelt.inference.model import load_model
from recordio_tools.face_set import FaceRecord

# New labels by the record's own; the identities 2 and 5 are left out.
RENAMED = {4: 0, 0: 1, 3: 2, 1: 4}


@pytest.fixture
def selected(tiny_faces, tmp_path, recipe):
    """selected(renamed, rows=all) -> the recipe's data section with a manifest."""

    def data(renamed: dict[int, int], rows: slice = slice(None)) -> dict:
        with FaceRecord(tiny_faces) as record:
            pairs = [pair for pair in zip(record.image_keys, record.labels, strict=True) if pair[1] in renamed]
        path = tmp_path / "manifest.csv"
        lines = [f"{key},{label},{renamed[label]}" for key, label in pairs[rows]]
        path.write_text("\n".join(["key,label,new_label", *lines]) + "\n")
        return {**recipe(tmp_path)["data"], "manifest": str(path)}

    return data


def sha256(labels: list[int]) -> str:
    return hashlib.sha256(np.array(labels, dtype="<i8").tobytes()).hexdigest()


def test_provenance_of_a_checkpoint(train, plain_stage, selected, tmp_path, interrupt, saved):
    data = selected(RENAMED)
    with pytest.raises(interrupt("classify", 2)):
        train(tmp_path / "run", data=data, stages=plain_stage())
    facts, tensors = saved(tmp_path / "run/plain")
    assert facts["config"]["data"]["manifest"] == data["manifest"]
    assert facts["config"]["optim"]["batch"] == 8
    libraries = {name: version(name) for name in ("facelt", "torch", "numpy", "safetensors")}
    assert facts["versions"] == {"python": platform.python_version(), **libraries}
    # Class 3 has no image.
    expected = [4, 0, 3, -1, 1]
    assert tensors["class_map.label_C"].tolist() == expected
    assert facts["class_map_sha256"] == sha256(expected)
    assert len(facts["data_fingerprint"]) == 64


def test_checkpoints_of_other_data_are_refused_by_name(train, plain_stage, selected, tmp_path, interrupt):
    settings = {"stages": plain_stage(), "data": selected(RENAMED), "checkpoint_every": 1}
    with pytest.raises(interrupt("classify", 2)):
        train(tmp_path / "run", **settings)
    # The file name stays, so the configuration does not change.
    for renamed, rows, expected in (
        (RENAMED, slice(1, None), ["data fingerprint"]),
        ({2: 0, 0: 1, 3: 2, 1: 4}, slice(None), ["data fingerprint", "class map"]),
    ):
        selected(renamed, rows)
        with pytest.raises(UserError, match="checkpoint of other training data") as caught:
            train(tmp_path / "run", resume=True, **settings)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "run/plain/checkpoints"))
        assert "\n" not in message
        assert [name for name in ("data fingerprint", "class map") if f"{name} " in message] == expected
    selected(RENAMED)
    assert (train(tmp_path / "run", resume=True, **settings) / "plain/model.safetensors").exists()


def test_a_card_names_the_classes_and_the_weights(train, plain_stage, selected, finished_run, tmp_path):
    folder = train(tmp_path / "run", data=selected(RENAMED), stages=plain_stage(epochs=1)) / "plain"
    card = json.loads((folder / "card.json").read_text())
    assert card["classes"]["labels"] == [4, 0, 3, -1, 1]
    assert card["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    # Without a manifest the classes have no other labels.
    classes = json.loads((finished_run / "oltr/card.json").read_text())["classes"]
    assert classes.keys() == {"meaning", "sha256"}
    assert classes["meaning"] == "class c is label c of the data"
    assert classes["sha256"] == sha256(list(range(6)))


def test_weights_changed_since_their_card_was_written_are_refused(finished_run, tmp_path):
    folder = shutil.copytree(finished_run / "plain", tmp_path / "plain")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"does not match card\.json") as caught:
        load_model(folder, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    card = json.loads((folder / "card.json").read_text())
    del card["weights_sha256"]
    (folder / "card.json").write_text(json.dumps(card))
    assert load_model(folder, torch.device("cpu")).weights_sha256 == hashlib.sha256(weights).hexdigest()


def test_lists_have_no_names_but_their_labels(tmp_path):
    card = ListData(kind="list", root=tmp_path, train=tmp_path / "train.txt").class_map(3).card()
    assert card.keys() == {"meaning", "sha256"}
    assert card["sha256"] == sha256([0, 1, 2])
