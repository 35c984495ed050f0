"""MegaFace lists: names, sizes, sets, nesting, and paths outside the root."""

import json
from pathlib import Path

import pytest

from eval_megaface.suite import build_galleries, find_distractor_lists
from facelt.errors import UserError
from facelt.store.feature_tree import probe_identity, read_features_list


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "not a JSON features list"),
        (b"[1]", 'must hold an object with "path"'),
        (b'{"path": [1]}', 'must hold an object with "path"'),
        (b'{"path": ["a/b.jpg", "a/b.jpg"]}', "listed more than once"),
        (b'{"path": ["../b.jpg"]}', "not a relative path under"),
        (b'{"path": ["/etc/passwd"]}', "not a relative path under"),
        (b'{"path": ["a//b"]}', "not a relative path under"),
        (b'{"path": ["a\\\\b"]}', "not a relative path under"),
        (b'{"path": [""]}', "not a relative path under"),
    ],
)
def test_bad_lists(tmp_path, content, match):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_features_list(tmp_path / "list")


def test_missing_list(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_features_list(tmp_path / "list")


def test_list_without_ids(tmp_path):
    (tmp_path / "list").write_text(json.dumps({"path": ["a/1.jpg", "b/c/2.jpg"]}))
    assert read_features_list(tmp_path / "list") == ["a/1.jpg", "b/c/2.jpg"]


def test_identity_is_the_parent_folder():
    assert probe_identity("Robert_Downey_Jr/1.png", Path("x")) == "Robert_Downey_Jr"
    assert probe_identity("faces/Ann/1.png", Path("x")) == "Ann"
    with pytest.raises(UserError, match="is not in a folder"):
        probe_identity("1.png", Path("x"))


@pytest.fixture
def folder(tmp_path):
    for name in ("mf_json_10_1", "mf_json_10_2", "mf_json_100_1", "mf_json_100_2", "other_100_1x", "notes.txt"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize("pattern", [".", "mf_json_{size}_{set}"])
def test_finding_lists(folder, pattern):
    result = find_distractor_lists(pattern, folder, None, None)
    assert {key: path.name for key, path in result.items()} == {
        (10, 1): "mf_json_10_1",
        (10, 2): "mf_json_10_2",
        (100, 1): "mf_json_100_1",
        (100, 2): "mf_json_100_2",
    }
    assert list(find_distractor_lists(pattern, folder, [100, 10], [2])) == [(10, 2), (100, 2)]
    with pytest.raises(UserError, match=r"no list of 10 distractors, set 3; it has 10_1, 10_2, 100_1, 100_2"):
        find_distractor_lists(pattern, folder, None, [3])


def test_lists_that_are_not_there(folder):
    with pytest.raises(UserError, match="no such folder"):
        find_distractor_lists("nowhere", folder, None, None)
    with pytest.raises(UserError, match="holds no distractor list"):
        find_distractor_lists("zz_{size}_{set}", folder, None, None)
    (folder / "again_10_1").write_text("")
    with pytest.raises(UserError, match="are both the list of 10 distractors, set 1"):
        find_distractor_lists(".", folder, None, None)


def test_nested_lists_make_one_gallery_in_any_order():
    lists = {(2, 1): ["c", "a"], (3, 1): ["a", "b", "c"], (5, 1): ["e", "d", "c", "b", "a"]}
    (gallery,) = build_galleries(lists)
    assert gallery.prefixes == [(2, 1, 2), (3, 1, 3), (5, 1, 5)]
    assert gallery.paths == ["c", "a", "b", "e", "d"]


def test_lists_that_do_not_nest_are_searched_apart():
    galleries = build_galleries({(2, 1): ["a", "b"], (3, 1): ["b", "c", "d"], (2, 2): ["a", "b"]})
    assert [gallery.paths for gallery in galleries] == [["a", "b"], ["b", "c", "d"], ["a", "b"]]
    assert [gallery.prefixes for gallery in galleries] == [[(2, 1, 2)], [(3, 1, 3)], [(2, 2, 2)]]
