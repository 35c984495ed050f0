"""Result files of the development kit: its names, its keys, its ranks from 0."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import cmc_path, evaluate, write_cmc
from facelt.config.loading import load_config


def test_a_run_writes_one_file_a_list(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_5_2", small.distractors[20:25])
    report = evaluate(load_config(small.write_config(), MegafaceConfig)).json_values()
    folder = small.root / "out/devkit"
    name = "cmc_facescrub_megaface_plain_direct_{}_{}.json"
    assert {path.name for path in folder.iterdir()} == {name.format(*cut) for cut in ((5, 1), (5, 2), (30, 1))}
    largest = json.loads((folder / name.format(30, 1)).read_text())
    assert largest["cmc"] == [list(range(20)), report["cmc"][0]["rate"]]
    both = [json.loads((folder / name.format(5, number)).read_text())["cmc"][1][0] for number in (1, 2)]
    assert report["curves"][0]["rate"][0] == pytest.approx(sum(both) / 2)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_round_trip(tmp_path_factory, rates):
    path = tmp_path_factory.mktemp("kit") / "cmc.json"
    write_cmc(path, sorted(rates))
    assert json.loads(path.read_text())["cmc"] == [list(range(len(rates))), sorted(rates)]


def test_names_never_leave_the_folder(tmp_path):
    assert cmc_path(tmp_path, "../a b", 10, 1).name == "cmc_facescrub_megaface_..%2Fa%20b_10_1.json"
