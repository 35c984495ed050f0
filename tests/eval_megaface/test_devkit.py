"""Result files of the development kit: names, keys, ranks from 0."""

import json

import pytest

from eval_megaface.evaluate import devkit_path


def test_a_run_writes_one_file_a_list(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_5_2", small.distractors[20:25])
    report = small.run(folder=small.root / "new")
    folder = small.root / "new/devkit"
    name = "cmc_facescrub_megaface_plain_direct_{}_{}.json"
    contents = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert set(contents) == {name.format(*key) for key in ((5, 1), (5, 2), (30, 1))}
    assert all(list(content) == ["cmc"] for content in contents.values())
    assert contents[name.format(30, 1)]["cmc"] == [list(range(20)), report["cmc"][0]["rate"]]
    rank_1 = [contents[name.format(5, number)]["cmc"][1][0] for number in (1, 2)]
    assert report["curves"][0]["rate"][0] == pytest.approx(sum(rank_1) / 2)


def test_names_never_leave_the_folder(tmp_path):
    assert devkit_path(tmp_path, "../a b", 10, 1).name == "cmc_facescrub_megaface_..%2Fa%20b_10_1.json"
