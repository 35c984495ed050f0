"""Images that are both audited and distractor are refused, unless a noise list or the auditor keeps them."""

import json

import numpy as np
import pytest
import yaml

from facelt.audit.inputs import open_inputs
from facelt.errors import UserError
from tests.feature_files import write_feature


@pytest.fixture
def leaking(faces):
    """A gallery whose rows 5 and 30 are the images 7 and 50."""
    faces.gallery_GD[[5, 30]] = faces.value_ND[[7, 50]]
    return {"path": str(faces.gallery())}


def notes_of(config):
    return [note for note in open_inputs(config).notes if "bit for bit" in note]


def test_leaked_images_are_refused_with_their_number_and_first_names(faces, settings, leaking, refused, cli):
    config = settings(gallery=leaking)
    expected = rf"2 images of .*probes have the embedding .*gallery, .*'{faces.keys[7]}' and 'stranger/5.jpg'"
    with pytest.raises(UserError, match=expected):
        open_inputs(config)
    path = faces.folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    assert "--noises, --gallery-noises" in refused("audit", "--config", path)
    code, output, error = cli("audit", "--config", path, "--allow-duplicates")
    assert code == 0, error
    assert "Note: 2 images of" in output
    assert "bit for bit" in json.loads((faces.folder / "report/report.json").read_text())["notes"][-2]


def test_noise_lists_of_either_side_cover_them(faces, settings, leaking, tmp_path):
    first, second = tmp_path / "noises.txt", tmp_path / "gallery_noises.txt"
    first.write_text(f"{faces.keys[7]}\n")
    second.write_text("30.jpg\n")
    probes = {"path": str(faces.store()), "noises": str(first)}
    with pytest.raises(UserError, match=rf"1 images of .*'{faces.keys[50]}' and 'stranger/30.jpg'"):
        open_inputs(settings(embeddings=probes, gallery=leaking, noise="raw"))
    covered = {"embeddings": probes, "gallery": {**leaking, "noises": str(second)}}
    assert notes_of(settings(**covered)) == []
    (note,) = notes_of(settings(**covered, noise="raw"))
    assert note.endswith("2 of them are on a noise list.")


def test_images_searched_among_each_other_and_repeats_of_one_side_are_no_duplicates(faces, settings):
    faces.value_ND[9] = faces.value_ND[8]
    faces.gallery_GD[3] = faces.gallery_GD[2]
    assert notes_of(settings()) == []
    assert notes_of(settings(gallery={"path": str(faces.gallery())})) == []


def test_a_tree_of_distractors_is_compared_as_well(faces, settings, tmp_path):
    keys = [f"stranger/{number}.jpg" for number in range(len(faces.gallery_GD))]
    faces.gallery_GD[12] = faces.value_ND[3]
    for key, row_D in zip(keys, faces.gallery_GD, strict=True):
        write_feature(tmp_path / f"tree/{key}_toy.bin", row_D)
    (tmp_path / "list.txt").write_text("\n".join(keys))
    gallery = {"path": str(tmp_path / "tree"), "algorithm": "toy", "list": str(tmp_path / "list.txt")}
    with pytest.raises(UserError, match=rf"1 images of .*'{faces.keys[3]}' and 'stranger/12.jpg'"):
        open_inputs(settings(gallery=gallery))


def test_the_people_that_set_the_threshold_are_compared_if_they_are_searched(faces, settings):
    other_ND = np.roll(faces.value_ND, 1, axis=1)
    faces.gallery_GD[1] = other_ND[0]
    named = {"gallery": {"path": str(faces.gallery())}}
    store = str(faces.store("calibration", other_ND))
    with pytest.raises(UserError, match=r"1 images of .*calibration have the embedding of a distractor"):
        open_inputs(settings(threshold={"fpir": 0.1, "store": store}, **named))
    assert notes_of(settings(threshold={"fmr": 0.1, "store": store}, **named)) == []


def test_the_other_model_is_compared_with_its_own_distractors(faces, settings):
    other_ND = np.roll(faces.value_ND, 1, axis=1)
    gallery_GD = np.roll(faces.gallery_GD, 1, axis=1)
    gallery_GD[4] = other_ND[11]
    changes = {
        "gallery": {"path": str(faces.gallery())},
        "against": {"path": str(faces.store("second", other_ND))},
        "against_gallery": {"path": str(faces.gallery("second_gallery", gallery_GD))},
    }
    with pytest.raises(UserError, match=rf"1 images of .*second have .*second_gallery, .*'{faces.keys[11]}'"):
        open_inputs(settings(**changes))
