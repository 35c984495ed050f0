"""Result files of the development kit: its names, its keys, its ranks from 0."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import cmc_path, evaluate, read_cmc, write_cmc
from facelt.config.loading import load_config
from facelt.errors import UserError


def test_a_run_writes_one_file_a_list(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_5_2", small.distractors[20:25])
    report = evaluate(load_config(small.write_config(), MegafaceConfig)).json_values()
    folder = small.root / "out/devkit"
    name = "cmc_facescrub_megaface_plain_direct_{}_{}.json"
    assert {path.name for path in folder.iterdir()} == {name.format(*cut) for cut in ((5, 1), (5, 2), (30, 1))}
    largest = json.loads((folder / name.format(30, 1)).read_text())
    assert largest["cmc"] == [list(range(20)), report["cmc"][0]["rate"]]
    both = [read_cmc(folder / name.format(5, number)).rates[0] for number in (1, 2)]
    assert report["curves"][0]["rate"][0] == pytest.approx(sum(both) / 2)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_round_trip(tmp_path_factory, rates):
    path = tmp_path_factory.mktemp("kit") / "cmc.json"
    write_cmc(path, sorted(rates))
    assert read_cmc(path).rates == sorted(rates)
    assert read_cmc(path).ranks == list(range(1, len(rates) + 1))


def test_the_kits_own_file_is_read(tmp_path):
    # Other keys than cmc are there, and rates may be whole numbers.
    path = tmp_path / "cmc.json"
    path.write_text('{"cmc": [[0, 1], [0.5, 1]], "roc": [[0.0, 1.0], [0.1, 1.0]], "traditional_cmc": [[0], [1.0]]}')
    assert read_cmc(path).rates == [0.5, 1.0]


def test_names_never_leave_the_folder(tmp_path):
    assert cmc_path(tmp_path, "../a b", 10, 1).name == "cmc_facescrub_megaface_..%2Fa%20b_10_1.json"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must hold an object"),
        ('{"cmc": [[0], [0.5], []]}', "must hold an object"),
        ('{"cmc": [[], []]}', "must hold an object"),
        ('{"cmc": [[0, 1], [0.5]]}', "a rate for each of the ranks"),
        ('{"cmc": [[1, 2], [0.5, 0.6]]}', "a rate for each of the ranks"),
        ('{"cmc": [[0], ["0.5"]]}', "a rate for each of the ranks"),
        ('{"cmc": [[0], [true]]}', "a rate for each of the ranks"),
        ('{"cmc": [[0, 1], [0.6, 0.5]]}', "must rise within 0 and 1"),
        ('{"cmc": [[0], [NaN]]}', "must rise within 0 and 1"),
        ('{"cmc": [[0], [1.5]]}', "must rise within 0 and 1"),
    ],
)
def test_damage_is_named(tmp_path, content, match):
    path = tmp_path / "cmc.json"
    path.write_text(content)
    with pytest.raises(UserError, match=match) as caught:
        read_cmc(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_cmc(tmp_path / "nothing")
