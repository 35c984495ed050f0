"""Benchmark records: reading restores what was written, invalid lines are named; recipes and run time."""

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest

from facelt.benchmarking.records import (
    RunRecord,
    SmokeRecord,
    append_record,
    changed_settings,
    config_digest,
    read_records,
)
from facelt.benchmarking.run import all_recipes, find_recipe, network_width
from facelt.benchmarking.times import record_stage, stage_minutes, timed_session
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.data.cifar import CifarData
from facelt.data.image_files import ListData
from facelt.data.records import RecordData
from facelt.errors import UserError
from facelt.inference.model import build_method

ORIGIN = {"suite": "s", "recipe": "r", "imbalance": 100, "config": "ab", "seed": 3, "machine": "M", "torch": "2"}
RUN = RunRecord(
    **ORIGIN, commit="c", overall=0.1 + 0.2, many=0.5, medium=None, few=0.0, chosen="last epoch", minutes=None
)
SMOKE = SmokeRecord(**ORIGIN, commit="c", losses={"plain": (2.5, 1.25)})


def test_records_of_versions_without_width_subset_and_epochs_are_read(tmp_path):
    path = tmp_path / "benchmarks.jsonl"
    values = RUN.model_dump(exclude={"width", "subset", "epochs"})
    path.write_text(json.dumps(values) + "\n")
    (record,) = read_records(path)
    assert record == RUN
    assert (record.width, record.subset, record.epochs) == (None, None, None)


def test_records_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "docs" / "benchmarks.jsonl"
    assert read_records(path) == []
    for record in (RUN, SMOKE, RUN):
        append_record(path, record)
    assert read_records(path) == [RUN, SMOKE, RUN]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 2: the line: Invalid JSON"),
        ('{"kind": "guess"}', "line 2: the line: Input tag 'guess'"),
        (RUN.model_dump_json().replace('"overall":0.3', '"overall":30.3'), "line 2: run.overall: .*less than or equal"),
        (RUN.model_dump_json().replace('"seed":3', '"seed":"x"'), "line 2: run.seed"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, what):
    path = tmp_path / "benchmarks.jsonl"
    append_record(path, RUN)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"benchmarks\.jsonl, {what}"):
        read_records(path)


@pytest.fixture
def digest(checkout):
    def of(*settings: str) -> str:
        return config_digest(load_config(checkout / "configs/tiny/softmax.yaml", TrainConfig, settings))

    return of


def test_the_digest_is_of_what_is_trained_not_of_where(digest):
    same = ("out=elsewhere", "seed=7", "device=cuda", "data.root=/other", "data.workers=3", "log_every=1")
    sets = ("validation.sets.lfw=lfw.bin",)
    assert {digest(), digest(*same), digest("optim.momentum=0.9"), digest(*sets)} == {digest()}
    others = [digest(setting) for setting in ("data.imbalance=2", "optim.lr=0.06", "stages.0.epochs=5")]
    assert len({digest(), *others}) == 4


def test_measured_records_belong_to_the_present_recipes(root):
    """A renamed configuration key changes the digest of a recipe: the records follow."""
    for record in read_records(root / "docs" / "benchmarks.jsonl"):
        if record.kind == "run":
            overrides = [*record.settings, f"data.imbalance={record.imbalance}"]
            recipe = find_recipe(root / "configs", f"{record.suite}/{record.recipe}")
            assert config_digest(load_config(recipe.path, TrainConfig, overrides)) == record.config


@pytest.mark.parametrize(
    ("recipe", "width"),
    [
        ("softmax", "16-32-64"),
        ("ride", "3 x 16-24-48"),
        ("balpoe", "3 x 16-32-64"),
        ("independent", "3 x 16-32-64"),
        ("reslt", "3 x 16-32-64"),
    ],
)
def test_the_width_is_that_of_the_tested_network(root, recipe, width):
    config = load_config(root / f"configs/cifar100_lt/{recipe}.yaml", TrainConfig)
    assert network_width(config) == width
    method = build_method(config, config.stages[-1], 100)
    channels: dict[str, set[int]] = {"layer1": set(), "layer2": set(), "layer3": set()}
    for name, weight in method.network.state_dict().items():
        if name.endswith(".conv2.weight"):
            channels[next(layer for layer in channels if f".{layer}." in name)].add(len(weight))
    assert list(channels.values()) == [{int(value)} for value in width.rpartition(" ")[2].split("-")]


def test_the_subset_is_named_by_the_file_of_the_training_images(tmp_path):
    (tmp_path / "train.rec").touch()
    manifest = tmp_path / "lt.csv"
    assert CifarData(kind="cifar", root=tmp_path / "other").training_file == "cifar-100-python/train"
    assert CifarData(kind="cifar", root=tmp_path).training_file == "train.rec"
    assert ListData(kind="list", root=tmp_path, train=tmp_path / "ImageNet_LT_train.txt").training_file == (
        "ImageNet_LT_train.txt"
    )
    assert RecordData(kind="record", train=tmp_path).training_file == "train.rec"
    assert RecordData(kind="record", train=tmp_path, manifest=manifest).training_file == "train.rec, lt.csv"


def test_settings_that_make_no_other_recipe_are_left_out():
    given = ["optim.lr=1", "data.root=/x", "data.pad=2", "log_every=3", "validation.sets.lfw=lfw.bin"]
    assert changed_settings(given) == ("data.pad=2", "optim.lr=1")


def test_recipes_are_the_files_in_a_folder_with_a_base(checkout):
    assert [recipe.title for recipe in all_recipes(checkout / "configs")] == ["tiny/slow", "tiny/softmax"]
    assert find_recipe(checkout / "configs", "tiny/slow").path == checkout / "configs/tiny/slow.yaml"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tiny/sotfmax", "did you mean tiny/softmax, tiny/slow?"),
        ("softmax", "did you mean tiny/softmax?"),
        ("base", "there are: tiny/slow, tiny/softmax"),
        ("../configs/tiny/slow", "did you mean tiny/slow?"),
    ],
)
def test_a_name_that_is_no_recipe_gets_the_nearest(checkout, name, meant):
    with pytest.raises(UserError, match=f"^{name}: no such recipe; ") as error:
        find_recipe(checkout / "configs", name)
    assert str(error.value).endswith(meant)


@pytest.fixture
def clock(monkeypatch):
    """A clock whose `now` the test sets."""
    now = SimpleNamespace(now=0.0)
    monkeypatch.setattr("facelt.benchmarking.times.time.perf_counter", lambda: now.now)
    return now


def test_sessions_add_up_and_a_killed_one_leaves_the_total_unknown(tmp_path, clock):
    path = tmp_path / "sessions.json"
    with timed_session(path) as total:
        clock.now = 30.0
        assert total() == 0.5
    with suppress(KeyboardInterrupt), timed_session(path) as total:
        clock.now = 120.0
        raise KeyboardInterrupt
    clock.now = 500.0
    assert total() == (30 + 90) / 60
    killed = timed_session(path)
    killed.__enter__()
    with timed_session(path) as total:
        assert total() is None
    assert json.loads(path.read_text()) == [30.0, 90.0, None, 0.0]


def test_minutes_of_stages_are_those_since_the_stage_before(tmp_path, clock):
    with timed_session(tmp_path / "sessions.json") as total:
        clock.now = 120.0
        record_stage(tmp_path, "plain", total())
        clock.now = 150.0
    with timed_session(tmp_path / "sessions.json") as total:
        clock.now = 180.0
        record_stage(tmp_path, "crt", total())
    assert (stage_minutes(tmp_path, "plain"), stage_minutes(tmp_path, "crt")) == (2.0, 1.0)
    assert stage_minutes(tmp_path, "other") is None
    record_stage(tmp_path, "ncm", None)
    record_stage(tmp_path, "lws", 9.0)
    assert (stage_minutes(tmp_path, "ncm"), stage_minutes(tmp_path, "lws")) == (None, None)


@pytest.mark.parametrize("content", ["{", '["a"]', "[true]", "{}"])
def test_damaged_times_are_named(tmp_path, content):
    path = tmp_path / "sessions.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"sessions\.json: cannot be read .*; remove it"):
        timed_session(path).__enter__()
