"""MegaFace feature files: the published format, errors for damaged files, and no path outside the root."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.store.feature_tree import FeatureTree, feature_path, read_feature
from tests.feature_files import write_feature


def test_bytes(tmp_path):
    (tmp_path / "a.jpg_x.bin").write_bytes(struct.pack("<4i2f", 2, 1, 4, 5, 1.5, -2.0))
    assert read_feature(tmp_path / "a.jpg_x.bin").tolist() == [1.5, -2.0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_round_trip(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("tree") / "f.bin"
    write_feature(path, np.array(values))
    np.testing.assert_array_equal(read_feature(path), np.array(values, dtype=np.float32))


def test_golden_files(golden):
    path = golden / "megaface/features/facescrub/person_00/person_00_0.jpg_golden.bin"
    feature_D = read_feature(path)
    assert feature_D.shape == (64,)
    assert path.read_bytes()[16:] == feature_D.tobytes()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "fewer than the header of a feature file"),
        (struct.pack("<4i", 2, 1, 4, 6) + bytes(8), r"header is \[2, 1, 4, 6\]"),
        (struct.pack("<4i", -1, 1, 4, 5), r"header is \[-1, 1, 4, 5\]"),
        (struct.pack("<4i", 2**31 - 1, 1, 4, 5), "header is"),
        (struct.pack("<4i", 2, 1, 4, 5) + bytes(7), "holds 7 bytes of values, the header says 8"),
        (struct.pack("<4i", 2, 1, 4, 5) + bytes(9), "holds 9 bytes of values, the header says 8"),
        (struct.pack("<4i2f", 2, 1, 4, 5, 1, float("nan")), "not finite"),
        (struct.pack("<4i2f", 2, 1, 4, 5, 1, float("inf")), "not finite"),
        (struct.pack("<4i3f", 3, 1, 4, 5, 1, 1, 1), "holds 3 values, the other features 2"),
    ],
)
def test_damage_is_named(tmp_path, content, match):
    write_feature(tmp_path / "a/1.jpg_x.bin", np.ones(2))
    (tmp_path / "a/2.jpg_x.bin").write_bytes(content)
    rows = FeatureTree(tmp_path, "x", ["a/1.jpg", "a/2.jpg"])
    with pytest.raises(UserError, match=match) as caught:
        rows[0:2]
    assert "a/2.jpg_x.bin" in str(caught.value)


def test_missing_features_are_counted(tmp_path):
    write_feature(tmp_path / "a/1.jpg_x.bin", np.ones(2))
    with pytest.raises(UserError, match=r"2 of 3 features are missing, such as a/2.jpg_x.bin, b/1.jpg_x.bin"):
        FeatureTree(tmp_path, "x", ["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    (tmp_path / "a/2.jpg_x.bin").mkdir()
    with pytest.raises(UserError, match="1 of 2"):
        FeatureTree(tmp_path, "x", ["a/1.jpg", "a/2.jpg"])


def test_rows_come_in_list_order(tmp_path):
    for number in range(5):
        write_feature(tmp_path / f"{number}/i.jpg_x.bin", np.array([number, 1.0]))
    rows = FeatureTree(tmp_path, "x", [f"{number}/i.jpg" for number in (4, 1, 0)])
    assert rows.shape == (3, 2)
    np.testing.assert_array_equal(rows[0:3], [[4, 1], [1, 1], [0, 1]])
    assert rows[1:2].shape == (1, 2)


@pytest.mark.parametrize("image", ["../secret.jpg", "/etc/x.jpg", "a/../../x.jpg", "a/./b.jpg"])
def test_names_never_leave_the_root(tmp_path, image):
    with pytest.raises(UserError, match="not a relative path under"):
        feature_path(tmp_path, image, "x")


def test_algorithm_is_a_suffix(tmp_path):
    with pytest.raises(UserError, match="not a valid file name suffix"):
        feature_path(tmp_path, "a.jpg", "/../../x")


def test_links_never_leave_the_root(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    write_feature(outside / "1.jpg_x.bin", np.ones(2))
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "2.jpg_x.bin").symlink_to(outside / "1.jpg_x.bin")
    for image in ("folder/1.jpg", "2.jpg"):
        with pytest.raises(UserError, match="links to a file outside"):
            FeatureTree(root, "x", [image])
