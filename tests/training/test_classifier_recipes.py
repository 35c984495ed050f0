"""Recipes with other classifiers on a trained feature: settings, resuming, and dataset passes."""

import json

import pytest
import torch
from safetensors.torch import load_file

from facelt.config.loading import load_config
from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.inference.model import build_method, load_model
from facelt.models.pretrained import load_stage_weights
from facelt.training.run import run
from tests.data.cifar_folder import write_cifar
from tests.training.frozen import run_frozen

# Of the last stage: method, epochs, learning rate, batch. METHODS.md has these of BagofTricks-LT for the first two and
# of the fusion's authors for llw, asm and kt.
RECIPES = {
    "crt": ("classify", 30, 0.1, 128),
    "lws": ("lws", 30, 0.1, 128),
    "tau_norm": ("tau_norm", 0, 0.1, 128),
    "logit_adjustment_post_hoc": ("logit_adjustment", 0, 0.1, 128),
    "ncm": ("ncm", 0, 0.1, 128),
    "fusion_sum": ("fusion", 0, 0.1, 128),
    "fusion_softmax_sum": ("fusion", 0, 0.1, 128),
    "fusion_max": ("fusion", 0, 0.1, 128),
    "fusion_w_mix": ("fusion", 0, 0.1, 128),
    "fusion_llw": ("fusion_llw", 10, 0.2, 512),
    "fusion_asm": ("fusion_asm", 10, 0.1, 256),
    "fusion_kt": ("fusion_kt", 200, 0.1, 128),
    "fslwf": ("fslwf", 60, 0.01, 400),
    "model_regression": ("model_regression", 12, 0.1, 128),
    "meta_model_net": ("meta_model_net", 14, 0.1, 128),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_settings_and_its_stages_fit_each_other(name, root):
    config = load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig)
    assert config.out.name == name
    states: dict[str, dict[str, torch.Tensor]] = {}
    with torch.device("meta"):
        for stage in config.stages:
            built = build_method(config, stage, 100)
            if stage.init_from is not None:
                state = states[stage.init_from]
                load_stage_weights(built.network, {key.removeprefix("network."): value for key, value in state.items()})
                built.load_stage(state)
            states[stage.name] = built.state_dict()
    optim = stage.optim or config.optim
    assert (stage.method.name, stage.epochs, optim.lr, optim.batch) == RECIPES[name]
    assert stage.keep == "last"
    if name.startswith("fusion_") and stage.method.name == "fusion":
        assert f"fusion_{stage.method.rule}" == name
    if name == "crt":
        assert stage.method.sampler == "class_aware"
        assert not stage.method.keep_head
    if name in ("crt", "lws"):
        assert set(stage.freeze) == {"backbone", "embedding"}
        assert optim.weight_decay == 5e-4
        assert optim.nesterov


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder of CIFAR-10 with 12 training images a class."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, 10, per_class=12)
    return root


def small(root, cifar, out, name, **settings) -> TrainConfig:
    """A recipe on that: 12 to 3 images a class, an epoch of four steps, two epochs where the last stage has any."""
    config = load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig)
    settings = {"out": out, "device": "cpu", "data.root": cifar, "data.classes": 10, "data.imbalance": 4, **settings}
    settings |= {"model.backbone": "resnet10", "optim.batch": 14, "checkpoint_every": 3}
    for number, stage in enumerate(config.stages):
        settings[f"stages.{number}.epochs"] = (2 if number or len(config.stages) == 1 else 1) if stage.epochs else 0
        if stage.optim is not None:
            settings[f"stages.{number}.optim.batch"] = 14
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig, overrides)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fusion_asm", {}),
        ("fusion_kt", {}),
        ("fslwf", {"stages.1.method.novel_below": 8}),
        ("meta_model_net", {"stages.1.method.levels": 3}),
    ],
)
def test_an_interrupted_run_ends_bit_exact(
    name, settings, root, cifar, tmp_path, interrupt, assert_same_weights, metrics
):
    straight = run(small(root, cifar, tmp_path / "straight", name, **settings))
    last = load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig).stages[-1]
    stopped = small(root, cifar, tmp_path / "stopped", name, **settings)
    # In the middle of the last epoch, after a checkpoint.
    with pytest.raises(interrupt(last.method.name, 7)):
        run(stopped)
    run(stopped, resume=True)
    assert_same_weights(straight / f"{last.name}/model.safetensors", stopped.out / f"{last.name}/model.safetensors")
    assert metrics(straight) == metrics(stopped.out)
    assert not load_model(stopped.out, torch.device("cpu")).method.training


def test_dataset_passes_run_when_needed(root, cifar, tmp_path, monkeypatch):
    """Once before the first step, twice for the mean and the means, and in the middle of the stage for kt."""
    passes = []
    for name in ("ncm", "fslwf", "fusion_kt"):
        kind = METHODS[name]

        def finish(self, kind=kind, original=kind.end_dataset_pass):
            passes.append((kind.__name__, self.network.training))
            original(self)

        monkeypatch.setattr(kind, "end_dataset_pass", finish)
    run(small(root, cifar, tmp_path / "ncm", "ncm"))
    assert passes == [("Ncm", False)] * 2
    passes.clear()
    run(small(root, cifar, tmp_path / "fslwf", "fslwf", **{"stages.1.method.novel_below": 8}))
    assert passes == [("Fslwf", False)]
    passes.clear()
    run(small(root, cifar, tmp_path / "kt", "fusion_kt", **{"stages.0.method.memory_start": 0.5}))
    assert passes == [("FusionKt", False)]


def test_retraining_keeps_the_network_but_for_its_statistics(root, cifar, tmp_path):
    folder = run(small(root, cifar, tmp_path / "run", "crt"))
    before, after = (load_file(folder / stage / "model.safetensors") for stage in ("plain", "crt"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} <= moved
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(name.endswith(statistics) for name in moved - {"head.weight", "head.bias"})
    assert any(name.endswith(statistics) for name in moved)
    card = json.loads((folder / "crt/card.json").read_text())
    assert card["stage"] == "crt"


def test_three_processes_run_the_passes_like_one(recipe, rank_pool, tmp_path):
    """The third one holds two of the six classes, one of them without images."""
    kt = {"name": "kt", "method": {"name": "fusion_kt", "memory_start": 0.5}, "epochs": 2}
    ncm = {"name": "ncm", "init_from": "kt", "method": {"name": "ncm"}, "epochs": 0}
    llw = {"name": "llw", "init_from": "kt", "method": {"name": "fusion_llw"}, "epochs": 1}
    for name in ("one", "three"):
        (tmp_path / f"{name}.seen").mkdir()
    # Without batch norm at work large steps diverge.
    single, triple = (
        recipe(tmp_path / name, stages=[kt, ncm, llw], optim={"lr": 0.01, "batch": 8}) for name in ("one", "three")
    )
    run_frozen(single, tmp_path / "one.seen")
    rank_pool.run(run_frozen, 3, triple, tmp_path / "three.seen")
    for stage in ("kt", "ncm", "llw"):
        alone, together = (load_file(tmp_path / name / stage / "model.safetensors") for name in ("one", "three"))
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-3, atol=1e-4, msg=f"{stage} {key}")
