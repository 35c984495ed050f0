"""TinyFace's lists: what is read, and one line for each thing that is wrong."""

import numpy as np
import pytest
from scipy.io import savemat

from facelt.errors import UserError
from facelt.store.tinyface import TinyfaceLists, distractor_keys
from tests.benchmark_files import TinyfaceFiles


@pytest.fixture
def files(tmp_path):
    return TinyfaceFiles(tmp_path)


def test_both_lists_are_read_from_the_folder_or_its_parent(files, tmp_path):
    for folder in (tmp_path, files.folder):
        lists = TinyfaceLists.read(folder)
        assert lists.folder == files.folder
        assert lists.keys == [f"{part}/{name}" for part in ("Probe", "Gallery_Match") for name in files.names[part]]
        assert lists.identity_N.tolist() == [*files.probe_ids, *files.match_ids]
        assert lists.probes == len(files.probe_ids)


def test_distractors_are_the_images_of_their_folder(files):
    with pytest.raises(UserError, match=r"Gallery_Distractor: cannot be read \(No such file"):
        distractor_keys(files.folder)
    (files.folder / "Gallery_Distractor").mkdir()
    (files.folder / "Gallery_Distractor/readme.txt").touch()
    with pytest.raises(UserError, match="contains no image"):
        distractor_keys(files.folder)
    for name in ("b.JPG", "a.png"):
        (files.folder / "Gallery_Distractor" / name).touch()
    assert distractor_keys(files.folder) == ["Gallery_Distractor/a.png", "Gallery_Distractor/b.JPG"]


def names(*values: object) -> np.ndarray:
    cells = np.empty((len(values), 1), dtype=object)
    cells[:, 0] = values
    return cells


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe_set": None}, r"probe_img_ID_pairs\.mat: has no variable probe_set; its variables are 'probe_ids'"),
        ({"probe_ids": None}, "has no variable probe_ids"),
        ({"gallery_set": None}, r"gallery_match_img_ID_pairs\.mat: has no variable gallery_set"),
        ({"probe_ids": np.ones((3, 1))}, "probe_set has 60 names, probe_ids has 3 identities"),
        ({"probe_ids": np.full((60, 1), 0.5)}, "probe_ids must hold whole numbers"),
        ({"probe_ids": np.full((60, 1), np.nan)}, "probe_ids must hold whole numbers"),
        ({"probe_ids": np.full((60, 1), -3.0)}, "probe_ids must hold identities from 0 on"),
        ({"probe_ids": np.full((60, 1), 1e300)}, "probe_ids must hold identities from 0 on"),
        ({"probe_ids": names("1", "2")}, "probe_ids must hold whole numbers"),
        ({"probe_set": np.ones((60, 1))}, "probe_set must be a cell array of file names; entry 1 is not a name"),
        ({"probe_set": names("a.jpg", 7.0)}, "entry 2 is not a name"),
        ({"probe_set": np.empty((0, 0), dtype=object)}, "probe_set must be a cell array of file names; it is empty"),
        ({"probe_set": names("a.jpg", "../a.jpg")}, r"lists '\.\./a\.jpg', which is not the name of a file"),
        ({"probe_set": names("a.jpg", "b.jpg", "a.jpg")}, r"lists 'a\.jpg' twice"),
    ],
)
def test_a_list_that_is_wrong_is_named(files, changes, message):
    files.write(**changes)
    with pytest.raises(UserError, match=message) as error:
        TinyfaceLists.read(files.folder)
    assert "\n" not in str(error.value)


def test_files_that_are_no_lists(files):
    path = files.folder / "probe_img_ID_pairs.mat"
    content = path.read_bytes()
    for damaged in (b"", b"not a list", content[:-40], content[:140], content[:128] + bytes(60)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"pairs\.mat: .*MATLAB file of version 5"):
            TinyfaceLists.read(files.folder)
    # Version 4 has no header.
    savemat(path, {"probe_ids": np.ones((3, 1))}, format="4")
    with pytest.raises(UserError, match="not a MATLAB file of version 5"):
        TinyfaceLists.read(files.folder)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        TinyfaceLists.read(files.folder)
