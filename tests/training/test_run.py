"""Training runs: output, learning, determinism, and resuming."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from facelt.config.train import RESUME_MAY_CHANGE
from facelt.data.records import RecordData
from facelt.errors import UserError
from facelt.inference.model import load_model
from facelt.training.checkpoint import Checkpoints

STAGES = ("plain", "oltr")


class Killed(Exception):
    """The end of the process."""


def killed(*_):
    raise Killed


def test_output_of_a_run(finished_run, recipe, metrics):
    assert {path.name for path in finished_run.iterdir()} == {
        "config.yaml",
        "stages.json",
        "metrics.jsonl",
        "tensorboard",
        *STAGES,
    }
    for stage in STAGES:
        assert {path.name for path in (finished_run / stage).iterdir()} == {"model.safetensors", "card.json"}
    recorded = yaml.safe_load((finished_run / "config.yaml").read_text())
    given = {"lr": 0.05, "batch": 8}
    defaults = {"accumulate": 1, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "fused": True}
    assert recorded["optim"] == {**given, **defaults}
    assert json.loads((finished_run / "stages.json").read_text()) == list(STAGES)
    assert any((finished_run / "tensorboard").iterdir())
    steps = [(line["stage"], line["epoch"], line["step"]) for line in metrics(finished_run) if "loss" in line]
    assert steps == [(stage, epoch, step) for stage in STAGES for epoch in range(2) for step in range(4)]
    ends = [line for line in metrics(finished_run) if "validation_accuracy" in line]
    assert [(line["stage"], line["epoch"]) for line in ends] == [(stage, epoch) for stage in STAGES for epoch in (1, 2)]
    assert all("centroid_norm" in line for line in ends if line["stage"] == "oltr")


def test_content_of_a_card(finished_run):
    card = json.loads((finished_run / "oltr" / "card.json").read_text())
    assert (card["schema"], card["stage"], card["num_classes"], card["dim"]) == ("facelt.model/1", "oltr", 6, 16)
    assert card["kinds"] == ["direct", "meta", "meta_unit"]
    assert card["preprocessing"]["image_size"] == [32, 32]
    assert card["training_images"] == 37


def test_the_loss_falls_on_separable_identities(train, plain_stage, metrics, tmp_path):
    folder = train(tmp_path / "run", stages=plain_stage(epochs=6))
    losses = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    finished_run, train, plain_stage, tmp_path, assert_same_weights
):
    again = train(tmp_path / "again")
    for stage in STAGES:
        assert_same_weights(finished_run / stage / "model.safetensors", again / stage / "model.safetensors")
    other = load_file(train(tmp_path / "other", seed=1, stages=plain_stage(epochs=1)) / "plain" / "model.safetensors")
    assert not torch.equal(other["head.weight"], load_file(again / "plain" / "model.safetensors")["head.weight"])


# An epoch has four steps; a checkpoint is written before the first, after two and at the end.
@pytest.mark.parametrize(
    ("method", "step"),
    [("classify", 1), ("classify", 7), ("dynamic_meta", 1), ("dynamic_meta", 4)],
)
def test_an_interrupted_run_ends_bit_exact(
    method, step, finished_run, train, tmp_path, interrupt, metrics, assert_same_weights
):
    with pytest.raises(interrupt(method, step)):
        train(tmp_path / "run", checkpoint_every=2)
    folder = train(tmp_path / "run", resume=True, checkpoint_every=2)
    for stage in STAGES:
        assert_same_weights(finished_run / stage / "model.safetensors", folder / stage / "model.safetensors")
    assert metrics(folder) == metrics(finished_run)


def test_an_interrupted_run_with_a_decode_worker_ends_bit_exact(
    finished_run, train, recipe, tmp_path, interrupt, metrics, assert_same_weights
):
    data = {**recipe(tmp_path)["data"], "workers": 1}
    with pytest.raises(interrupt("dynamic_meta", 3)):
        train(tmp_path / "run", data=data, checkpoint_every=2)
    folder = train(tmp_path / "run", resume=True, data=data, checkpoint_every=2)
    assert_same_weights(finished_run / "oltr" / "model.safetensors", folder / "oltr" / "model.safetensors")
    assert metrics(folder) == metrics(finished_run)


def test_a_run_interrupted_while_finalizing_ends_bit_exact(
    finished_run, train, tmp_path, monkeypatch, assert_same_weights
):
    def full(path, card):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("facelt.training.trainer.write_card", full)
        with pytest.raises(OSError, match="no space"):
            train(tmp_path / "run")
    folder = train(tmp_path / "run", resume=True)
    for stage in STAGES:
        assert_same_weights(finished_run / stage / "model.safetensors", folder / stage / "model.safetensors")


def test_resuming_a_finished_run_changes_nothing(train, plain_stage, tmp_path):
    folder = train(tmp_path / "run", stages=plain_stage(epochs=1))
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if "tensorboard" not in path.parts}
    assert train(tmp_path / "run", resume=True, stages=plain_stage(epochs=1)) == folder
    assert {path: path.read_bytes() for path in before} == before


def test_checkpoints_left_after_the_card_are_removed_by_the_next_start(
    train, plain_stage, tmp_path, monkeypatch, finished_run
):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "remove", killed)
        with pytest.raises(Killed):
            train(tmp_path / "run", stages=plain_stage(epochs=1))
    assert any((tmp_path / "run/plain/checkpoints").iterdir())
    # The data are not opened again.
    monkeypatch.setattr(RecordData, "open", killed)
    folder = train(tmp_path / "run", resume=True, stages=plain_stage(epochs=1))
    assert {path.name for path in (folder / "plain").iterdir()} == {"model.safetensors", "card.json"}


def test_a_folder_with_a_run_is_refused_without_resume(finished_run, train):
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        train(finished_run)


def test_other_settings_are_refused_by_name(finished_run, train):
    with pytest.raises(UserError, match=r"other settings \(optim.lr, seed\)"):
        train(finished_run, resume=True, seed=4, optim={"lr": 0.06, "batch": 8})


def test_keys_that_do_not_affect_the_model_may_change_on_resume(
    finished_run, train, tmp_path, interrupt, assert_same_weights
):
    with pytest.raises(interrupt("classify", 5)):
        train(tmp_path / "run", checkpoint_every=2)
    folder = train(tmp_path / "run", resume=True, checkpoint_every=3, timeout_minutes=3, keep_checkpoints=4)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["checkpoint_every"], settings["timeout_minutes"], settings["keep_checkpoints"]) == (3, 3, 4)
    for stage in STAGES:
        assert_same_weights(finished_run / stage / "model.safetensors", folder / stage / "model.safetensors")


def test_a_run_of_an_earlier_version_resumes_with_new_keys(train, plain_stage, tmp_path, finished_run):
    folder = train(tmp_path / "run", stages=plain_stage(epochs=1))
    path = folder / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["validation"], settings["optim"]["nesterov"], settings["stages"][0]["batch_norm"]
    path.write_text(yaml.safe_dump(settings))
    assert train(folder, resume=True, stages=plain_stage(epochs=1)) == folder
    with pytest.raises(UserError, match=r"other settings \(optim.nesterov\)"):
        train(folder, resume=True, stages=plain_stage(epochs=1), optim={"lr": 0.05, "batch": 8, "nesterov": True})
    # Unknown keys at two levels.
    settings["stages"][0]["lr_share"] = {"network": 0.5}
    path.write_text(yaml.safe_dump(settings | {"forgotten": 1}))
    with pytest.raises(UserError, match=r"other settings \(.*forgotten"):
        train(folder, resume=True, stages=plain_stage(epochs=1))


def test_keys_that_may_change_are_keys(finished_run):
    settings = yaml.safe_load((finished_run / "config.yaml").read_text())
    for key in RESUME_MAY_CHANGE:
        section, _, name = key.rpartition(".")
        assert name in (settings[section] if section else settings)


def test_a_damaged_record_of_the_settings_is_refused(train, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml, line 1: not valid YAML: expected the node content"):
        train(out, resume=True)


def test_initial_weights_of_another_backbone_are_refused_before_training(finished_run, recipe, train, tmp_path):
    first, second = recipe(tmp_path)["stages"]
    model = recipe(tmp_path)["model"] | {"backbone": "resnet32"}
    branched = {**second, "method": {"name": "bbn"}, "attention": False, "branches": {"count": 2, "split": "none"}}
    elsewhere = {**second, "init_from": str(finished_run / "plain")}
    for changes, reason in (
        ({"stages": [first, branched]}, "'oltr' starts from 'plain'"),
        ({"stages": [elsewhere], "model": model}, rf"'oltr' starts from '{finished_run}/plain'"),
    ):
        with pytest.raises(UserError, match=rf"^stages: {reason}: the earlier stage has a different backbone"):
            train(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()


def test_a_stage_starts_from_another_run(finished_run, recipe, train, tmp_path):
    oltr = {**recipe(tmp_path)["stages"][1], "init_from": str(finished_run / "plain"), "epochs": 1}
    folder = train(tmp_path / "run", stages=[oltr], optim={"lr": 1e-30, "batch": 8, "weight_decay": 0})
    before, after = (
        load_file(finished_run / "plain" / "model.safetensors"),
        load_file(folder / "oltr/model.safetensors"),
    )
    assert torch.equal(before["network.backbone.conv1.weight"], after["network.backbone.conv1.weight"])
    assert torch.equal(before["head.weight"], after["head.hallucinator.weight"])


def test_the_best_epoch_is_kept_or_the_last(train, plain_stage, tmp_path, monkeypatch, assert_same_weights):
    # The step schedule does not look at the number of epochs, so two epochs are the beginning of three.
    two = train(tmp_path / "two", stages=plain_stage(epochs=2, keep="last"))
    three = train(tmp_path / "three", stages=plain_stage(epochs=3, keep="last"))
    accuracies = iter((0.2, 0.9, 0.3))
    figures = {"many": None, "medium": None, "few": None, "classes": {}, "images": {}}
    monkeypatch.setattr("facelt.training.trainer.asdict", lambda accuracy: {"overall": next(accuracies), **figures})
    best = train(tmp_path / "best", stages=plain_stage(epochs=3, keep="best"))
    assert_same_weights(best / "plain" / "model.safetensors", two / "plain" / "model.safetensors")
    assert json.loads((best / "plain/card.json").read_text())["best"] == {"validation_accuracy": 0.9, "epoch": 2}
    last = load_model(three, torch.device("cpu")).method.head.weight
    assert not torch.equal(last, load_model(best, torch.device("cpu")).method.head.weight)


def test_a_missing_gpu_is_an_error(train, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda was requested"):
        train(tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_training_set_is_refused(train, tmp_path):
    with pytest.raises(UserError, match="37 training images are fewer than one batch of 64"):
        train(tmp_path / "run", optim={"lr": 0.1, "batch": 64})


def test_a_missing_log_restarts_where_the_run_resumes(train, plain_stage, tmp_path, interrupt, metrics):
    with pytest.raises(interrupt("classify", 5)):
        train(tmp_path / "run", stages=plain_stage())
    (tmp_path / "run/metrics.jsonl").unlink()
    lines = metrics(train(tmp_path / "run", resume=True, stages=plain_stage()))
    assert [(line["epoch"], line["step"]) for line in lines if "loss" in line] == [(1, n) for n in range(4)]
