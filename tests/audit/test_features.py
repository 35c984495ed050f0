"""Opening of stores and trees: selection and order of images, noise lists, defects, and the provenance."""

import hashlib
import json
import os

import numpy as np
import pytest

from facelt.audit.features import open_features
from facelt.config.audit import FeaturesConfig
from facelt.errors import UserError
from tests.feature_files import write_feature


def opened(noise="drop", kind="direct", lazy=False, **config):
    return open_features(FeaturesConfig(**config), kind, noise, lazy=lazy)


@pytest.fixture
def tree(faces):
    root = faces.folder / "tree"
    for key, row_D in zip(faces.keys, faces.value_ND, strict=True):
        write_feature(root / f"{key}_toy.bin", row_D)
    listed = faces.folder / "list.txt"
    listed.write_text("# images\n" + "\n".join(faces.keys) + "\n")
    return {"path": root, "algorithm": "toy", "list": listed}


def test_a_list_selects_and_orders_the_images_of_a_store(faces):
    listed = faces.folder / "list.json"
    listed.write_text(json.dumps({"path": faces.keys[9:3:-2]}))
    features = opened(path=faces.store(), list=listed)
    assert features.keys == faces.keys[9:3:-2]
    assert features.identities == faces.identities[9:3:-2]
    np.testing.assert_array_equal(features.rows[0:3], faces.value_ND[9:3:-2])
    listed.write_text("Person_00/0.jpg\nabsent.jpg\n")
    with pytest.raises(UserError, match=r"1 of 2 listed images are not in .*probes, such as 'absent.jpg'"):
        opened(path=faces.store(), list=listed)


def test_noise_lists_match_paths_or_stems(faces):
    noises = faces.folder / "noises.txt"
    noises.write_text("0001\tPerson_01/4.jpg\n7.png\n")
    features = opened(path=faces.store(), noises=noises)
    assert features.removed == 2
    assert features.keys == [key for index, key in enumerate(faces.keys) if index not in (4, 7)]
    subset = features.subset([5, 0])
    np.testing.assert_array_equal(subset.rows[0:2], faces.value_ND[[6, 0]])


def test_columns_and_provenance_of_a_store(faces):
    store = faces.store(attributes={"age": ["30"] * 64})
    features = opened(path=store)
    assert features.columns == {"age": ["30"] * 64}
    assert features.provenance["model"] == {"name": "toy"}
    assert (
        features.provenance["sha256"]["direct.npy"] == hashlib.sha256((store / "direct.npy").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_a_tree_holds_what_was_written(faces, tree, lazy):
    features = opened(**tree, lazy=lazy)
    np.testing.assert_array_equal(features.rows[0:64], faces.value_ND)
    assert (features.keys, features.cosine, features.defects) == (faces.keys, True, {})
    contents = [(tree["path"] / f"{key}_toy.bin").read_bytes() for key in faces.keys]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    assert features.provenance["sha256"] == {"files in the list's order": digest}
    assert [item.sha256 for item in features.inputs] == [digest]
    if not lazy:
        assert features.identities == faces.identities


def test_damaged_files_of_a_tree_are_defects_or_an_error(faces, tree):
    write_feature(tree["path"] / f"{faces.keys[2]}_toy.bin", np.ones(5))
    (tree["path"] / f"{faces.keys[3]}_toy.bin").write_bytes(b"short")
    (tree["path"] / f"{faces.keys[4]}_toy.bin").unlink()
    (tree["path"] / f"{faces.keys[5]}_toy.bin").unlink()
    os.mkfifo(tree["path"] / f"{faces.keys[5]}_toy.bin")
    features = opened(**tree)
    assert features.defects == {
        2: "holds 5 values, most others 12",
        3: "has 5 bytes, fewer than the header of a feature file",
        4: "no such file",
        5: "is not a regular file; write the embeddings to one",
    }
    with pytest.raises(UserError, match="2 of 64 features"):
        opened(**tree, lazy=True)
    (tree["path"] / f"{faces.keys[5]}_toy.bin").unlink()
    for index in (4, 5):
        write_feature(tree["path"] / f"{faces.keys[index]}_toy.bin", np.ones(12))
    with pytest.raises(UserError, match=r"Person_00/2.jpg_toy.bin: holds 5 values, the other features 12"):
        opened(**tree, lazy=True)


def test_a_sparse_file_of_a_tree_is_refused_before_it_is_read(faces, tree):
    os.truncate(tree["path"] / f"{faces.keys[6]}_toy.bin", 1 << 40)
    with pytest.raises(UserError, match=r"6\.jpg_toy\.bin: is a sparse file of 1,099,511,627,776 bytes"):
        opened(**tree)


def test_a_tree_holds_no_other_kind(tree):
    with pytest.raises(UserError, match="holds kind 'direct' only, not 'meta'"):
        opened(**tree, kind="meta")
