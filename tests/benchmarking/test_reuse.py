"""Reuse of finished stages: a run that begins from another one's stage equals a run from scratch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from facelt.benchmarking.records import read_records
from facelt.benchmarking.reuse import stage_keys
from facelt.benchmarking.run import all_recipes
from facelt.cli.main import app
from facelt.config.loading import load_config
from facelt.config.recipes import RECIPES_FOLDER
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.inference.model import read_card
from tests.training.fixtures import assert_same_weights, metrics  # noqa: F401

SECOND_STAGES = {
    "crt": {
        "init_from": "plain",
        "method": {"name": "classify", "head": "linear", "sampler": "class_aware"},
        "freeze": ["backbone", "embedding"],
        "embedding": "none",
        "epochs": 2,
        "keep": "last",
    },
    "ncm": {"init_from": "plain", "method": {"name": "ncm"}, "embedding": "none", "epochs": 0, "keep": "last"},
}


@pytest.fixture
def suite(checkout) -> Path:
    """The suite of `checkout` with two recipes whose first stage is that of softmax, one with other unused settings."""
    folder = checkout / "configs" / "tiny"
    plain = yaml.safe_load((folder / "base.yaml").read_text())["stages"][0]
    for name, stage in SECOND_STAGES.items():
        recipe = {"base": "base.yaml", "stages": [plain, {"name": name, **stage}]}
        if name == "ncm":
            recipe |= {"model": {"dim": 64}, "log_every": 3}
            recipe["stages"] = [{**plain, "name": "first"}, {"name": name, **stage, "init_from": "first"}]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def bench(suite, tmp_path) -> Callable[..., str]:
    """bench(*words, out=name) -> the output of the command."""

    def call(*words: object, out: str = "runs") -> str:
        command = ["bench", *map(str, words), "--out", str(tmp_path / out), "--commit", "c1"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.exception or done.output
        return done.output

    return call


def run_folder(tmp_path: Path, recipe: str, out: str = "runs", seed: int = 0) -> Path:
    (folder,) = (tmp_path / out / "tiny" / recipe).glob(f"*/seed{seed}")
    return folder


def records(suite: Path) -> list:
    return read_records(suite.parent.parent / "docs" / "benchmarks.jsonl")


@pytest.mark.parametrize("recipe", SECOND_STAGES)
def test_a_reused_first_stage_gives_the_run_from_scratch(
    recipe,
    bench,
    suite,
    tmp_path,
    metrics,  # noqa: F811
    assert_same_weights,  # noqa: F811
):
    bench("tiny/softmax")
    output = bench(f"tiny/{recipe}")
    bench(f"tiny/{recipe}", out="scratch")
    reused, scratch = run_folder(tmp_path, recipe), run_folder(tmp_path, recipe, "scratch")
    assert metrics(reused) == metrics(scratch)
    stages = json.loads((scratch / "stages.json").read_text())
    for stage in stages:
        weights = f"{stage}/model.safetensors"
        assert_same_weights(reused / weights, scratch / weights)
        cards = [json.loads((folder / stage / "card.json").read_text()) for folder in (reused, scratch)]
        for card in cards:
            card["config"].pop("out")
        assert cards[0] == cards[1]
        assert read_card(reused / stage / "card.json")[1].out == reused
        assert not (reused / stage / "checkpoints").exists()
    for name in ("stages.json", "config.yaml"):
        assert (reused / name).read_text() == (scratch / name).read_text()
    assert reused.parent.name == scratch.parent.name
    # The record tells the two apart, and nothing else but times differs.
    plain, short, full = records(suite)
    (stage,) = short.reused
    assert (stage.stage, stage.recipe, stage.commit, full.reused) == (stages[0], "tiny/softmax", "c1", ())
    assert stage.minutes == json.loads((run_folder(tmp_path, "softmax") / "stage_minutes.json").read_text())["plain"]
    assert 0 < stage.minutes <= plain.minutes
    assert f"reused: stage {stages[0]} from tiny/softmax, seed 0, which took {stage.minutes:.1f} minutes\n" in output
    assert short.minutes == json.loads((reused / "sessions.json").read_text())[0] / 60
    assert stages[0] not in json.loads((reused / "stage_minutes.json").read_text())
    ignored = {"minutes", "reused"}
    assert short.model_dump(exclude=ignored) == full.model_dump(exclude=ignored)


def test_the_table_shows_the_minutes_of_reused_stages_apart(bench, suite, tmp_path):
    bench("tiny/softmax")
    bench("tiny/crt")
    _, record = records(suite)
    page = (suite.parent.parent / "docs" / "benchmarks.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| crt | 4 |")]
    assert f"| {record.minutes:.1f} + {record.reused[0].minutes:.1f} (plain of softmax) |" in row


def test_the_first_of_several_runs_is_named_and_its_weights_outlive_it(
    bench,
    suite,
    tmp_path,
    assert_same_weights,  # noqa: F811
):
    bench("tiny/crt")
    bench("tiny/ncm")
    shutil.rmtree(run_folder(tmp_path, "crt"))
    bench("tiny/softmax")
    assert [[stage.recipe for stage in record.reused] for record in records(suite)] == [[], ["tiny/crt"], ["tiny/crt"]]
    weights = [run_folder(tmp_path, "ncm") / "first", run_folder(tmp_path, "softmax") / "plain"]
    assert_same_weights(*(folder / "model.safetensors" for folder in weights))
    # Nothing is trained, only tested.
    assert not (run_folder(tmp_path, "softmax") / "stage_minutes.json").exists()


def test_another_seed_other_settings_and_no_reuse_train_the_stage(bench, suite, tmp_path):
    bench("tiny/softmax")
    for options in (("--seeds", "1"), ("--set", "precision=bf16"), ("--set", "optim.lr=0.04"), ("--no-reuse",)):
        assert "reused" not in bench("tiny/crt", *options)
    assert [record.reused for record in records(suite)] == [()] * 5


def test_a_damaged_stage_or_one_of_other_images_is_not_reused(bench, suite, tmp_path):
    bench("tiny/softmax")
    stage = run_folder(tmp_path, "softmax") / "plain"
    card = json.loads((stage / "card.json").read_text())
    (stage / "card.json").write_text(json.dumps({**card, "data_fingerprint": "0" * 64}))
    assert f"{stage}: trained on other images\n" in bench("tiny/crt", "--seeds", "0")
    shutil.rmtree(run_folder(tmp_path, "crt"))
    (stage / "card.json").write_text(json.dumps(card))
    with (stage / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert f"not reused: stage plain from tiny/softmax, seed 0: {stage}: model.safetensors does not match" in bench(
        "tiny/crt"
    )
    shutil.rmtree(run_folder(tmp_path, "crt"))
    (stage / "card.json").write_text("{}")
    assert f"not reused: {stage / 'card.json'}: not a model card" in bench("tiny/crt")
    assert all(record.reused == () for record in records(suite))


def test_a_reuse_that_was_cut_short_is_repeated(
    bench,
    suite,
    tmp_path,
    monkeypatch,
    metrics,  # noqa: F811
):
    """A process that is killed before the card is written leaves a folder that the next call clears."""
    bench("tiny/softmax")

    def killed(path: Path, card: dict) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("facelt.benchmarking.reuse.write_card", killed)
        CliRunner().invoke(app, ["bench", "tiny/crt", "--out", str(tmp_path / "runs")])
    folder = run_folder(tmp_path, "crt")
    assert json.loads((folder / "reused.json").read_text())[0]["recipe"] == "tiny/softmax"
    bench("tiny/crt", "--resume", "--no-reuse")
    assert records(suite)[-1].reused == ()
    assert not (folder / "reused.json").exists()
    trained = metrics(folder)
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr("facelt.benchmarking.reuse.write_card", killed)
        CliRunner().invoke(app, ["bench", "tiny/crt", "--out", str(tmp_path / "runs")])
    bench("tiny/crt", "--resume")
    assert [stage.recipe for stage in records(suite)[-1].reused] == ["tiny/softmax"]
    assert metrics(folder) == trained


def test_a_run_that_has_begun_the_stage_continues_it(bench, suite, tmp_path, interrupted_training):
    with interrupted_training():
        CliRunner().invoke(app, ["bench", "tiny/crt", "--out", str(tmp_path / "runs")])
    bench("tiny/softmax")
    assert "reused" not in bench("tiny/crt", "--resume")
    assert records(suite)[-1].reused == ()


def keys(folder: Path, *settings: str) -> list[str]:
    return stage_keys(load_config(folder / "ncm.yaml", TrainConfig, settings))


@pytest.mark.parametrize(
    "setting",
    [
        *("out=x", "seed=5", "device=cuda", "data.root=/x", "log_every=7", "checkpoint_every=9", "model.dim=9"),
        *("data.workers=0", "stages.0.name=second", "validation.sets={lfw: lfw.bin}"),
    ],
)
def test_settings_that_do_not_change_the_first_stage(suite, setting):
    settings = [setting, "stages.1.init_from=second"] if "name" in setting else [setting]
    assert keys(suite, *settings)[0] == keys(suite)[0]


@pytest.mark.parametrize(
    "setting",
    [
        *("precision=bf16", "optim.lr=0.2", "optim.batch=8", "data.imbalance=2", "data.pad=1", "data.drop_last=false"),
        *("model.backbone=resnet32", "stages.0.epochs=3", "stages.0.method.sampler=class_aware", "stages.0.keep=best"),
        *("stages.0.embedding=fc_relu", "stages.0.schedule.gamma=0.2", "stages.0.lr_mult.network=0.5"),
        *("stages.0.optim={lr: 0.05, batch: 16, nesterov: true}", "stages.0.batch_norm=frozen"),
    ],
)
def test_settings_that_change_the_first_stage(suite, setting):
    assert keys(suite, setting)[0] != keys(suite)[0]


def test_settings_of_the_second_stage_change_only_its_key(suite):
    changed = keys(suite, "stages.1.method.centre=false")
    assert changed[0] == keys(suite)[0]
    assert changed[1] != keys(suite)[1]


def test_the_dimension_counts_with_an_embedding_layer(suite):
    layer = "stages.0.embedding=fc_relu"
    assert keys(suite, layer, "model.dim=9")[0] != keys(suite, layer)[0]


def test_an_equal_optimiser_of_the_stage_is_that_of_the_run(suite):
    own = "stages.0.optim={lr: 0.05, batch: 16}"
    assert keys(suite, own) == keys(suite)


@pytest.mark.parametrize("setting", ["model.pretrained=x.pth", "stages.0.init_from=runs/a/plain"])
def test_stages_that_begin_with_a_file_are_not_shared(suite, setting):
    assert keys(suite, setting) == []


def test_recipes_of_cifar100_lt_that_share_first_stages():
    """The position of each shared stage and the recipes that share it, as their files say."""
    with_plain = "crt fusion_asm fusion_llw fusion_max fusion_softmax_sum fusion_sum fusion_w_mix"
    with_plain += " logit_adjustment_post_hoc lws meta_model_net model_regression ncm oltr plain_long softmax tau_norm"
    recipes: dict[tuple[int, str], list[str]] = {}
    for recipe in all_recipes(RECIPES_FOLDER):
        for position, key in enumerate(stage_keys(load_config(recipe.path, TrainConfig))):
            recipes.setdefault((position, key), []).append(recipe.name)
    shared = {(position, " ".join(names)) for (position, _), names in recipes.items() if len(names) > 1}
    assert shared == {
        (0, with_plain),
        (0, "drs_cam drs_class_balanced drs_progressive drs_square_root"),
        (0, "mixup mixup_finetune"),
        (0, "ride ride_router"),
        *((position, "lfme lfme_ldam") for position in range(3)),
    }


def test_a_list_of_reused_stages_that_cannot_be_read_is_named(bench, suite, tmp_path):
    bench("tiny/softmax")
    (run_folder(tmp_path, "softmax") / "reused.json").write_text("[1]")
    done = CliRunner().invoke(app, ["bench", "tiny/crt", "--out", str(tmp_path / "runs")])
    assert isinstance(done.exception, UserError)
    assert "reused.json: not a list of reused stages; remove " in str(done.exception)
