"""Semi-Siamese stages: resume, ranks, accumulation, bad images, and the recipe of fine-tuning on few images."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from facelt.cli.main import app
from facelt.config.loading import load_config
from facelt.config.registry import BACKBONES
from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.inference.model import build_method
from facelt.training.run import run
from recordio_tools.writer import FaceRecordWriter
from tests.training.blocks import BLOCKS

METHOD = {"name": "semi_siamese", "queue": 4}
STAGE = {"name": "pairs", "method": METHOD, "epochs": 4, "optim": {"lr": 0.05, "batch": 4}, "keep": "last"}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "pairs/model.safetensors")


def test_an_interrupted_run_resumes_to_the_same_bits(train, interrupt, assert_same_weights, metrics, tmp_path):
    whole = train(tmp_path / "whole", stages=[STAGE])
    with pytest.raises(interrupt("semi_siamese", 2)):
        train(tmp_path / "parts", stages=[STAGE])
    parts = train(tmp_path / "parts", resume=True, stages=[STAGE])
    assert_same_weights(parts / "pairs/model.safetensors", whole / "pairs/model.safetensors")
    assert metrics(parts) == metrics(whole)
    assert {line["lr"] for line in metrics(whole) if "lr" in line} == {0.05}
    accuracies = [line["validation_accuracy"] for line in metrics(whole) if "validation_accuracy" in line]
    assert len(accuracies) == 4
    state = weights(whole)
    assert state["gallery.n_averaged"] == 5
    assert min(state["queue_label_Q"].tolist()) >= 0


def run_values(values: dict) -> None:
    run(TrainConfig.model_validate(values))


def test_two_processes_train_like_one(recipe, rank_pool, tmp_path):
    stage = STAGE | {"batch_norm": "frozen"}
    run_values(recipe(tmp_path / "alone", stages=[stage]))
    rank_pool.run(run_values, 2, recipe(tmp_path / "two", stages=[stage]))
    alone, two = weights(tmp_path / "alone"), weights(tmp_path / "two")
    assert alone.keys() == two.keys()
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)


def test_micro_batches_share_the_queue_and_one_update_of_the_gallery_network(train, tmp_path):
    optim = {"lr": 0.05, "batch": 4, "accumulate": 2}
    state = weights(train(tmp_path / "run", stages=[STAGE | {"optim": optim}]))
    # The copy at the start and four steps.
    assert state["gallery.n_averaged"] == 5
    assert len(set(state["queue_label_Q"].tolist())) == 4
    assert state["queue_position"] == 0


def test_a_queue_for_more_identities_than_there_are_stops_before_training(train, tmp_path):
    for queue, identities in ((6, 6), (5, 5)):
        # Six classes are known before the run folder exists, and that one has no image when the data are open.
        with pytest.raises(UserError, match=f"method.queue: {queue} entries need more .* have {identities}; lower it"):
            train(tmp_path / f"run{queue}", stages=[STAGE | {"method": METHOD | {"queue": queue}}])
        assert (tmp_path / f"run{queue}").exists() == (queue == 5)
    with pytest.raises(UserError, match="5 training identities are fewer than one batch of 8; lower the batch size"):
        train(tmp_path / "batch", stages=[{**STAGE, "optim": None}])


def write_people(path, people: int, size: int) -> list[int]:
    """Writes two images of each person, one of the last; returns their labels."""
    path.parent.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(people), 2).tolist()[:-1]
    base_C443 = random.integers(40, 216, (people, 4, 4, 3))
    with FaceRecordWriter(path, image_size=(size, size), num_identities=people) as writer:
        for label in labels:
            small_443 = (base_C443[label] + random.integers(-30, 31, (4, 4, 3))).astype(np.uint8)
            image = cv2.resize(small_443, (size, size), interpolation=cv2.INTER_LINEAR)
            writer.write(label, cv2.imencode(".png", image)[1].tobytes())
    return labels


def test_an_image_that_cannot_be_read_leaves_its_mate_alone(recipe, tmp_path):
    write_people(tmp_path / "data/train.rec", 6, 32)
    content = bytearray((tmp_path / "data/train.rec").read_bytes())
    # The third image of the record loses its PNG signature.
    position = [index for index in range(len(content)) if content[index : index + 4] == b"\x89PNG"][2]
    content[position : position + 4] = b"none"
    (tmp_path / "data/train.rec").write_bytes(content)
    values = recipe(tmp_path / "run", stages=[STAGE | {"epochs": 8}])
    values["data"] |= {"train": str(tmp_path / "data/train.rec"), "validation_fraction": 0.0, "max_bad_images": 1}
    run(TrainConfig.model_validate(values))
    card = json.loads((tmp_path / "run/pairs/card.json").read_text())
    assert len(card["bad_images"]) == 1
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


def test_the_recipe_of_fine_tuning_trains(root, monkeypatch, tmp_path):
    monkeypatch.setitem(BACKBONES, "resnet10", BLOCKS)
    write_people(tmp_path / "data/train.rec", 12, 32)
    settings = {
        "out": tmp_path / "run",
        "device": "cpu",
        "precision": "float32",
        "data.train": tmp_path / "data/train.rec",
        "data.image_size": "[32,32]",
        "data.workers": 0,
        "model.backbone": "resnet10",
        "model.dim": 16,
        "model.pretrained": tmp_path / "backbone.safetensors",
        "optim.batch": 6,
        "stages.0.epochs": 2,
        "stages.1.epochs": 3,
        "stages.1.method.queue": 11,
        "log_every": 1,
    }
    recipe, overrides = root / "configs/finetune_shallow.yaml", [f"{key}={value}" for key, value in settings.items()]
    command = ["train", "--config", str(recipe), *(word for change in overrides for word in ("--set", change))]
    missing = CliRunner().invoke(app, command)
    assert missing.exit_code == 1
    assert "backbone.safetensors" in str(missing.exception)
    assert not (tmp_path / "run").exists()

    config = load_config(recipe, TrainConfig, overrides)
    torch.manual_seed(3)
    network = build_method(config, config.stages[0], 12).network
    for _ in range(20):
        network(torch.randn(16, 3, 32, 32))
    pretrained = {name: value.detach().clone() for name, value in network.state_dict().items()}
    save_file(pretrained, tmp_path / "backbone.safetensors")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception

    for stage in ("finetune", "semi_siamese"):
        after = load_file(tmp_path / "run" / stage / "model.safetensors")
        moved = {name: (value - after[f"network.{name}"]).abs().max().item() for name, value in pretrained.items()}
        # Both stages keep the statistics of the pretrained network, and move its last blocks more than the first ones.
        assert all(value == 0 for name, value in moved.items() if "running" in name)
        assert 0 < moved["backbone.conv1.weight"] < moved["backbone.layer3.0.0.weight"]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 * (23 // 6) + 3 * (12 // 6)
    assert np.isfinite(losses).all()
