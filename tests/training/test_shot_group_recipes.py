"""BBN, ResLT and LFME recipes: settings, stages, and resuming."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from facelt.config.loading import load_config
from facelt.config.train import OptimConfig, ScheduleConfig, TrainConfig
from facelt.inference.model import build_method, load_model
from facelt.training.run import run
from tests.data.cifar_folder import write_cifar

EXPERTS = ["expert_many", "expert_medium", "expert_few"]
OPTIM = {
    "bbn": OptimConfig(lr=0.1, nesterov=True, weight_decay=2e-4, batch=128),
    "reslt": OptimConfig(lr=0.1, nesterov=True, weight_decay=5e-4, batch=128),
    **{name: OptimConfig(lr=0.1, weight_decay=5e-4, batch=128) for name in ("expert_many", "lfme", "lfme_ldam")},
    "expert_medium": OptimConfig(lr=0.1, weight_decay=5e-4, batch=64),
    "expert_few": OptimConfig(lr=0.1, weight_decay=5e-4, batch=32),
}
# The epochs of 200 after which the learning rate falls, what it is multiplied by, and the epochs it rises over.
DROPS = {"bbn": ([119, 159], 0.01, 5), "reslt": ([160, 180], 0.1, 5)}
DROPS |= dict.fromkeys(("lfme", "lfme_ldam"), ([111, 178], 0.1, 0))


@pytest.mark.parametrize("name", ["bbn", "reslt", "lfme", "lfme_ldam"])
def test_a_recipe_has_its_settings_and_its_stages_fit_each_other(name, root):
    config = load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig)
    assert config.out.name == name
    counts = torch.tensor([int(500 * 0.01 ** (c / 99)) for c in range(100)])
    methods = {stage.name: build_method(config, stage, 100, counts) for stage in config.stages}
    for stage in config.stages:
        assert (stage.optim or config.optim) == OPTIM[stage.name]
        assert (stage.epochs, stage.keep, methods[stage.name].network.dim) == (200, "last", 64)
        if stage.name in DROPS:
            epochs, factor, warmup = DROPS[stage.name]
            shares = [round(share * 200) for share in stage.schedule.milestones]
            assert (list(stage.schedule.at) or shares) == epochs
            assert (stage.schedule.gamma, stage.schedule.warmup_epochs) == (factor, warmup)
        else:
            assert stage.schedule == ScheduleConfig(name="cosine")
    if name == "reslt":
        assert methods[name].member_KC.sum(dim=1).tolist() == [100, 65, 30]
    if name.startswith("lfme"):
        assert list(methods) == [*EXPERTS, name]
        methods[name].set_teachers([methods[teacher] for teacher in stage.teachers])


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Folders of CIFAR-10 by their training images a class."""
    folders = {count: tmp_path_factory.mktemp("cifar") for count in (12, 110)}
    for count, folder in folders.items():
        write_cifar(folder, 10, count)
    return folders


@pytest.fixture
def train_recipe(root, cifar, tmp_path):
    """train_recipe(name, count, imbalance, **changes) -> the folder of a run of an epoch a stage on CIFAR-10."""

    def train_recipe(name, count, imbalance, **changes):
        config = load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig)
        values = {"out": tmp_path / name, "device": "cpu", "data.root": cifar[count], "data.classes": 10}
        values |= {"data.imbalance": imbalance, "optim.batch": 14}
        values |= {f"stages.{number}.epochs": 1 for number in range(len(config.stages))}
        overrides = [f"{key}={value}" for key, value in (values | changes).items()]
        return run(load_config(root / f"configs/cifar100_lt/{name}.yaml", TrainConfig, overrides))

    return train_recipe


@pytest.mark.parametrize(("name", "changes"), [("bbn", {}), ("reslt", {"stages.0.method.starts": "[2, 4]"})])
def test_a_recipe_of_branches_trains_a_usable_model(train_recipe, name, changes):
    folder = train_recipe(name, 12, 4, **changes)
    method = load_model(folder, torch.device("cpu")).method
    with torch.no_grad():
        assert method.logits(torch.randn(3, 3, 32, 32)).full_BC.isfinite().all()
    means = {key: value for key, value in method.state_dict().items() if key.endswith("running_mean")}
    assert len(means) > 30
    assert all(mean.any() for mean in means.values())


def test_the_recipe_of_experts_trains_each_on_its_shots_and_the_student_on_all(train_recipe, metrics):
    # 110, 78, 55, 39, 27, 19, ... images of the classes: one of many shots, four of medium, five of few.
    batches = {"stages.1.optim.batch": 14, "stages.2.optim.batch": 14}
    folder = train_recipe("lfme", 110, 22, **{"model.backbone": "resnet10", "model.dim": 16, **batches})
    student = load_model(folder, torch.device("cpu")).method
    assert (student.most_C > 0).all()
    # By themselves, without the others' classes, the many-shot images are certain to their expert.
    assert student.least_C[0] == student.most_C[0] == 1
    assert (student.least_C[1:] < student.most_C[1:]).all()
    assert student.expert_right_E.tolist() != [0, 0, 0]
    (end,) = [line for line in metrics(folder) if "weight_few" in line]
    assert [end[f"weight_{shots}"] for shots in ("many", "medium", "few")] == [1, 1, 1]


def stages(epochs: int) -> list[dict]:
    expert = {"name": "expert", "method": {"name": "classify", "shots": "few"}, "epochs": 4, "keep": "last"}
    student = {"name": "student", "method": {"name": "lfme"}, "epochs": epochs, "keep": "last", "teachers": ["expert"]}
    return [expert, student]


@pytest.mark.parametrize("fraction", [0.0, 0.3], ids=["counted on batches", "validated"])
def test_an_interrupted_lfme_run_ends_bit_exact(
    train, recipe, tmp_path, metrics, interrupt, assert_same_weights, fraction
):
    data = recipe(tmp_path)["data"] | {"validation_fraction": fraction}
    changes = {"data": data, "stages": stages(epochs=3), "checkpoint_every": 2}
    straight = train(tmp_path / "straight", **changes)
    lines = [line for line in metrics(straight) if line["stage"] == "student"]
    steps = sum("lr" in line for line in lines) // 3
    # In the middle of the second epoch, behind a checkpoint.
    interrupted = interrupt("lfme", steps + 3)
    with pytest.raises(interrupted):
        train(tmp_path / "stopped", **changes)
    stopped = train(tmp_path / "stopped", resume=True, **changes)
    assert_same_weights(straight / "student/model.safetensors", stopped / "student/model.safetensors")
    assert load_file(straight / "student/model.safetensors")["ranged"]
    assert metrics(stopped) == metrics(straight)


def test_expert_weights_follow_both_validations(train, recipe, tmp_path, metrics):
    """Uses the student's validation of the epoch before and the expert's of its saved epoch."""
    data = recipe(tmp_path)["data"] | {"validation_fraction": 0.3}
    folder = train(tmp_path / "run", data=data, stages=stages(epochs=4))
    figures = [line for line in metrics(folder) if "validation_few" in line]
    taught = [line["validation_few"] for line in figures if line["stage"] == "expert"][-1]
    epochs = [line for line in figures if line["stage"] == "student"]
    assert epochs[0]["weight_few"] == 1
    for before, after in pairwise(epochs):
        expected = min(max((taught - before["validation_few"]) / (0.7 * taught), 0), 1)
        assert after["weight_few"] == pytest.approx(expected, rel=1e-6)
    assert any(0 < line["weight_few"] < 1 for line in epochs)
