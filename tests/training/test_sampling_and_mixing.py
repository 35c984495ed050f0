"""Sampling and mixing recipes: settings, resuming, and several ranks.

B images, C classes, D feature.
"""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.loading import load_config
from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.distributed.comm import rank, world_size
from facelt.heads.classifiers import load_head
from facelt.inference.model import build_method, load_model
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.cam_sampling import ForegroundTransform
from facelt.methods.classify import Classify, ClassifySettings
from facelt.models.network import build_network
from facelt.models.pretrained import load_stage_weights
from facelt.training.run import run
from tests.data.cifar_folder import write_cifar

CLASSES = 4
COUNTS = torch.tensor([90, 30, 29, 3])
AT = StepContext(epoch=3, epochs=10, step=1, steps=5)

# Name, epochs, sampler, way to mix, whether foregrounds move, learning rate.
MIXUP, BALANCED = ("instance", "input", False), ("class_balanced", None, False)
RECIPES = {
    "mixup": [("plain", 400, *MIXUP, 0.1)],
    "manifold_mixup": [("plain", 400, "instance", "manifold", False, 0.1)],
    "remix": [("plain", 400, "instance", "remix", False, 0.1)],
    "mixup_finetune": [("mixup", 400, *MIXUP, 0.1), ("finetune", 20, "instance", None, False, 0.001)],
    "bag_of_tricks": [
        ("mixup", 320, *MIXUP, 0.1),
        ("drs", 80, "class_balanced", "input", True, 0.001),
        ("finetune", 20, *BALANCED, 0.001),
    ],
    "oversample": [("plain", 43, "oversample", None, False, 0.1)],
    "undersample": [("plain", 5600, "undersample", None, False, 0.1)],
    "reversed": [("plain", 200, "reversed", None, False, 0.1)],
}
for name in ("square_root", "progressive", "class_balanced", "cam"):
    sampler = "class_balanced" if name == "cam" else name
    RECIPES[f"drs_{name}"] = [
        ("plain", 160, "instance", None, False, 0.1),
        ("drs", 40, sampler, None, name == "cam", 0.001),
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_settings_and_its_stages_fit_each_other(name, root):
    config = load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig)
    assert config.out.name == name
    settings, states = [], {}
    with torch.device("meta"):
        for stage in config.stages:
            method, optim = stage.method, stage.optim or config.optim
            mix, moves = method.mix and method.mix.name, method.move_foreground is not None
            settings.append((stage.name, stage.epochs, method.sampler, mix, moves, optim.lr))
            assert (optim.batch, optim.weight_decay, optim.momentum, stage.keep) == (128, 2e-4, 0.9, "last")
            assert optim.nesterov == (name not in ("oversample", "undersample", "reversed"))
            built = build_method(config, stage, 100)
            assert method.keep_head == (stage.init_from is not None)
            if stage.init_from is not None:
                state = states[stage.init_from]
                load_stage_weights(built.network, {key.removeprefix("network."): value for key, value in state.items()})
                load_head(built.head, state)
            assert stage.teachers == ((stage.init_from,) if moves else ())
            states[stage.name] = built.state_dict()
    assert settings == RECIPES[name]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder of CIFAR-10 with 12 training images a class."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar(root, 10, per_class=12)
    return root


def bag_of_tricks(root, cifar, out) -> TrainConfig:
    """The recipe on that, an epoch of four steps a stage."""
    settings = {"out": out, "device": "cpu", "data.root": cifar, "data.classes": 10, "data.imbalance": 4}
    settings |= {"optim.batch": 14, "checkpoint_every": 2, "stages.1.optim.lr": 0.01}
    settings |= {f"stages.{number}.optim.batch": 14 for number in (1, 2)}
    settings |= {f"stages.{number}.epochs": 1 for number in range(3)}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return load_config(root / "configs/cifar100_lt/bag_of_tricks.yaml", TrainConfig, overrides)


def test_the_bag_of_tricks_trains_and_resumes(root, cifar, tmp_path, monkeypatch, interrupt, assert_same_weights):
    seen = []
    forward = ForegroundTransform.forward

    def watched(self, batch, teacher, generator):
        moved = forward(self, batch, teacher, generator)
        seen.append((teacher.head.weight.clone(), (batch.image_B3HW != moved.image_B3HW).flatten(1).any(1)))
        return moved

    with monkeypatch.context() as patch:
        patch.setattr(ForegroundTransform, "forward", watched)
        straight = run(bag_of_tricks(root, cifar, tmp_path / "straight"))
    states = {stage: load_file(straight / stage / "model.safetensors") for stage in ("mixup", "drs", "finetune")}
    assert len(seen) == 4
    assert all(torch.equal(weight, states["mixup"]["head.weight"]) for weight, _ in seen)
    changed_B = torch.cat([changed for _, changed in seen])
    assert 0.2 < changed_B.float().mean() < 0.9
    # The head is trained further: a new one would be far off.
    for earlier, later in (("mixup", "drs"), ("drs", "finetune")):
        before, after = states[earlier]["head.weight"], states[later]["head.weight"]
        assert 0 < (after - before).norm() < 0.2 * before.norm()

    interrupted = interrupt("classify", 4 + 3)
    with pytest.raises(interrupted):
        run(bag_of_tricks(root, cifar, tmp_path / "stopped"))
    stopped = run(bag_of_tricks(root, cifar, tmp_path / "stopped"), resume=True)
    assert_same_weights(straight / "finetune/model.safetensors", stopped / "finetune/model.safetensors")
    assert not load_model(stopped, torch.device("cpu")).method.training


def test_foregrounds_need_one_teacher(finished_run, train, plain_stage, tmp_path):
    stages = plain_stage(method={"name": "classify", "move_foreground": {}})
    with pytest.raises(ValidationError, match="teachers: classify with these settings needs 1, 0 given"):
        train(tmp_path / "none", stages=stages)
    stages = plain_stage(teachers=[str(finished_run / "plain")])
    with pytest.raises(ValidationError, match="teachers: classify with these settings needs 0, 1 given"):
        train(tmp_path / "one", stages=stages)


def classify(**config) -> Classify:
    torch.manual_seed(0)
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none")
    return METHODS["classify"](ClassifySettings(name="classify", **config), network, CLASSES, COUNTS).eval()


def ranks_step() -> dict:
    """One step of this rank's half of ten images, and what it drew; the teacher's head is split over the ranks."""
    method = classify(mix={"name": "manifold"}, loss={"name": "balanced_softmax"}, move_foreground={})
    teacher = classify().requires_grad_(False)
    teacher.head.weight.mul_(3)
    method.set_teachers([teacher])
    random = torch.Generator().manual_seed(1)
    image_B3HW, label_B = torch.randn(10, 3, 32, 32, generator=random), torch.arange(10) % CLASSES
    own = slice(10 * rank() // world_size(), 10 * (rank() + 1) // world_size())
    output = method.step([TrainBatch(image_B3HW[own], label_B[own])], AT)
    output.loss.backward()
    generator = AT.generator("cpu")
    moved = method.foreground_transform(TrainBatch(image_B3HW[own], label_B[own]), teacher, generator)
    blend = method.mixing.draw(moved.label_B, AT, generator)
    return {
        "lam": blend.lam,
        "partners": blend.partner_b.tolist(),
        "rows": method.foreground_transform.weight_CD,
        "own_rows": teacher.head.weight,
        "loss": output.loss.detach(),
        "feature": blend.mix(method.features(moved.image_B3HW).detach()),
        "labels": (blend.label_b, blend.partner_label_b),
        "bias": method.head.bias.grad,
    }


def test_ranks_pair_their_own_images(rank_pool):
    first, second = rank_pool.run(ranks_step, 2)
    assert first["lam"] == second["lam"]
    assert first["partners"] != second["partners"]
    assert sorted(first["partners"]) == sorted(second["partners"]) == list(range(5))
    for result in (first, second):
        assert torch.equal(result["rows"], torch.cat([first["own_rows"], second["own_rows"]]))
    assert torch.equal(first["loss"], second["loss"])
    bias_C = torch.zeros(CLASSES, requires_grad=True)
    feature_BD = torch.cat([first["feature"], second["feature"]])
    logits_BC = feature_BD @ first["rows"].T / 3 + bias_C + COUNTS.log()
    label_B, partner_label_B = (torch.cat([first["labels"][i], second["labels"][i]]) for i in range(2))
    expected = first["lam"] * torch.nn.functional.cross_entropy(logits_BC, label_B)
    expected = expected + (1 - first["lam"]) * torch.nn.functional.cross_entropy(logits_BC, partner_label_B)
    expected.backward()
    assert first["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(torch.cat([first["bias"], second["bias"]]), bias_C.grad, atol=1e-5)
