"""Every recipe of configs/cifar100_lt, from its file to the accuracy of its model, on a few images of ten classes."""

import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch

from facelt.benchmarking.run import shorten_recipe
from facelt.config.loading import command_of, load_config, read_layers
from facelt.config.recipes import recipe_names
from facelt.config.registry import BACKBONES, METHODS
from facelt.config.train import TrainConfig
from facelt.evaluation.evaluate import closed_set_accuracy
from facelt.inference.model import load_model
from facelt.models.backbones import Backbone, CifarResNet
from facelt.training import trainer
from facelt.training.run import run
from tests.data.cifar_folder import write_cifar

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "cifar100_lt"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
# One-step epochs, enough of them to reach what starts late in a stage.
EPOCHS, BATCH = 5, 8
WIDTHS = (16, 16, 16)


def thin(widths=WIDTHS):
    """Enough blocks to be split wherever the real network can be, at half the resolution."""
    network = CifarResNet(2, widths)
    network.conv1.stride = (2, 2)
    return network


class OneStep:
    """A loader whose epochs have one step."""

    steps_per_epoch = 1

    def __init__(self, loader):
        self._loader = loader

    def batches(self, epoch, start_step=0):
        return islice(self._loader.batches(epoch, start_step), 1 - start_step)

    def close(self):
        self._loader.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A small CIFAR-10; at imbalance 100 its classes have 130 to 1 images, so all shot bands occur."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, 10, per_class=130, test_per_class=10)
    return root


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """trained(recipe) -> (its shortened configuration, the run's folder); each recipe is run once."""
    done = {}

    def of(name: str) -> tuple[TrainConfig, Path]:
        if name not in done:
            config = load_config(CONFIGS / f"{name}.yaml", TrainConfig)
            values = shorten_recipe(config, tmp_path_factory.mktemp(name) / "run", EPOCHS).model_dump()
            for stage in values["stages"]:
                if "starts" in stage["method"]:  # ranks of classes, here a tenth as many
                    stage["method"]["starts"] = [start // 10 for start in stage["method"]["starts"]]
            for optim in filter(None, [values["optim"], *(stage["optim"] for stage in values["stages"])]):
                optim["batch"] = min(optim["batch"], BATCH)
            values |= {
                "device": "cpu",
                "precision": "float32",
                "data": {**values["data"], "root": pictures, "classes": 10, "workers": 0},
            }
            config = TrainConfig.model_validate(values)
            done[name] = config, run(config)
        return done[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet32", Backbone(thin, channels=WIDTHS[-1], stride=8, widths=WIDTHS))
        whole = trainer.build_train_loaders
        patch.setattr(trainer, "build_train_loaders", lambda *given: [OneStep(loader) for loader in whole(*given)])
        yield of


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_a_model_that_can_be_evaluated(name, trained):
    config, folder = trained(name)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for stage in config.stages:
        losses = [line["loss"] for line in lines if line["stage"] == stage.name and "loss" in line]
        assert len(losses) == stage.epochs
        assert all(map(math.isfinite, losses))
        model = load_model(folder / stage.name, torch.device("cpu"))
    accuracy = closed_set_accuracy(model, "test", "paper", batch=128, workers=0)
    assert 0 <= accuracy.overall <= 1
    assert sum(accuracy.images.values()) == 100
    assert all(accuracy.classes.values())


def test_every_method_has_a_recipe():
    """In the benchmark, or for faces in another recipe of `facelt train`."""
    names = [name for name in recipe_names() if command_of(read_layers(name).values()) == "train"]
    stages = [stage for name in names for stage in load_config(Path(name), TrainConfig).stages]
    assert {stage.method.name for stage in stages} == set(METHODS)
    in_benchmark = [stage for name in RECIPES for stage in load_config(CONFIGS / f"{name}.yaml", TrainConfig).stages]
    assert set(METHODS) - {stage.method.name for stage in in_benchmark} == {"semi_siamese"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_own_folder_and_keeps_its_last_epoch(name):
    """There are no validation images, and the test images choose nothing."""
    config = load_config(CONFIGS / f"{name}.yaml", TrainConfig)
    assert config.out == Path("runs/cifar100_lt") / ("plain" if name == "base" else name)
    assert {stage.keep for stage in config.stages} == {"last"}
    assert config.data.imbalance == 100
    assert config.model.backbone == "resnet32"
