"""Fine-tuning: layer-wise learning rates, frozen batch norm in every method, and steps that are not finite."""

import re

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.registry import BACKBONES, METHODS
from facelt.config.train import LrMultipliers, TrainConfig
from facelt.distributed.ddp import sync_batch_norm_stats
from facelt.errors import UserError
from facelt.inference.model import build_method
from facelt.methods.base import StepContext
from facelt.training.optim import Optimisers, freeze
from facelt.training.run import run
from tests.methods.minimal import WITHOUT_STEPS, stages
from tests.training.blocks import BLOCKS
from tests.training.test_nonfinite import spoil
from tests.training.thin import THIN

PLAIN = {"name": "plain", "method": {"name": "classify"}, "epochs": 2}
DECAYED = PLAIN | {"lr_mult": {"network": 0.5, "head": 2.0, "layer_decay": 0.6}}
PAIRS = {
    "name": "pairs",
    "method": {"name": "semi_siamese", "queue": 4},
    "epochs": 5,
    "optim": {"lr": 0.05, "batch": 4},
}


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    """Replaces ResNet-10 by three small layers."""
    monkeypatch.setitem(BACKBONES, "resnet10", BLOCKS)


def optimisers_of(recipe, folder, stage: dict) -> tuple:
    config = TrainConfig.model_validate(recipe(folder, stages=[stage]))
    torch.manual_seed(0)
    method = build_method(config, config.stages[0], 6)
    freeze(method, config.stages[0].freeze)
    return Optimisers(method, config.optim, config.stages[0]), method


def plain_share(name: str) -> float:
    """The multiplier of a parameter of `DECAYED`, from its name."""
    if name.startswith("head"):
        return 2.0
    layer = re.search(r"backbone\.(?:layer(\d)|(conv1|bn1))", name)
    blocks_above = 0 if layer is None else 3 - int(layer[1] or 0)
    return 0.5 * 0.6**blocks_above


def test_each_block_has_the_rate_of_the_next_one_times_the_decay(recipe, tmp_path):
    optimisers, method = optimisers_of(recipe, tmp_path, DECAYED | {"schedule": {"name": "step", "step_size": 1}})
    names = {parameter: name for name, parameter in method.named_parameters()}
    before = {name: value.detach().clone() for name, value in method.named_parameters()}
    for parameter in optimisers.parameters():
        parameter.grad = torch.ones_like(parameter)
    # The second epoch: a tenth of the rate, which is shown for the head.
    assert optimisers.step(StepContext(1, 2, 0, 4)) == pytest.approx(0.05 * 2.0 * 0.1)
    moved = {names[parameter]: before[names[parameter]] - parameter.detach() for parameter in optimisers.parameters()}
    assert moved.keys() == {name for name, value in method.named_parameters() if value.requires_grad}
    assert len({plain_share(name) for name in moved}) == 5
    for name, difference in moved.items():
        expected = 0.05 * plain_share(name) * 0.1 * (1 + 5e-4 * before[name])
        assert torch.allclose(difference, expected, rtol=1e-3, atol=1e-6), name


def test_without_decay_the_network_is_one_group(recipe, tmp_path):
    optimisers, method = optimisers_of(recipe, tmp_path, PLAIN)
    ((network, head),) = optimisers.groups()
    assert network["params"] == [value for value in method.network.parameters() if value.requires_grad]
    assert (network["name"], network["base_lr"], head["base_lr"]) == ("network", 0.05, 0.05)


def test_the_shown_rate_is_the_last_blocks_if_no_head_is_trained(recipe, tmp_path):
    optimisers, _ = optimisers_of(recipe, tmp_path, DECAYED | {"freeze": ["head"]})
    assert optimisers.step(StepContext(0, 2, 0, 4)) == pytest.approx(0.05 * 0.5)


def test_a_run_with_decay_resumes_to_the_same_weights(train, interrupt, assert_same_weights, tmp_path):
    whole = train(tmp_path / "whole", stages=[DECAYED])
    with pytest.raises(interrupt("classify", 6)):
        train(tmp_path / "parts", stages=[DECAYED], checkpoint_every=1)
    train(tmp_path / "parts", resume=True, stages=[DECAYED], checkpoint_every=1)
    assert_same_weights(tmp_path / "parts/plain/model.safetensors", whole / "plain/model.safetensors")
    same_rate = train(tmp_path / "same", stages=[DECAYED | {"lr_mult": {"network": 0.5, "head": 2.0}}])
    first, last = (load_file(folder / "plain/model.safetensors") for folder in (whole, same_rate))
    assert not torch.equal(first["network.backbone.conv1.weight"], last["network.backbone.conv1.weight"])


@pytest.mark.parametrize("change", [{"freeze": ["backbone"]}, {}], ids=["frozen", "flat"])
def test_a_decay_that_changes_no_rate_is_refused(recipe, tmp_path, monkeypatch, change):
    if not change:
        monkeypatch.setitem(BACKBONES, "resnet10", THIN["resnet10"])
    with pytest.raises(UserError, match=r"^lr_mult\.layer_decay: no block .* remove the key$"):
        optimisers_of(recipe, tmp_path, DECAYED | change)


@pytest.mark.parametrize("value", [0, 1.5, -1])
def test_a_decay_is_in_0_to_1(value):
    with pytest.raises(ValidationError, match="layer_decay"):
        LrMultipliers(layer_decay=value)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT_STEPS])
def test_frozen_statistics_stay_in_every_method(name, recipe, tmp_path, monkeypatch):
    values = recipe(tmp_path / "run")
    values["optim"]["batch"] = 15
    *earlier, only = stages(name)
    values["stages"] = [*earlier, {**only, "batch_norm": "frozen", "keep": "last"}]
    states = spoil(monkeypatch, set(), method=name)
    folder = run(TrainConfig.model_validate(values))
    before, after = states[0], load_file(folder / "only/model.safetensors")
    statistics = [key for key in before if key.startswith("network") and ("running" in key or "num_batches" in key)]
    assert len(statistics) >= 9
    assert all(torch.equal(before[key], after[key]) for key in statistics)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def synchronised_statistics() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(5000)
    norm.running_mean.normal_()
    norm.running_var.uniform_(1e-3, 1e3)
    sync_batch_norm_stats(norm, torch.device("cpu"))
    return norm.state_dict()


def test_equal_statistics_keep_every_bit_on_three_ranks(rank_pool):
    expected = synchronised_statistics()
    for state in rank_pool.run(synchronised_statistics, 3):
        assert all(torch.equal(value, expected[name]) for name, value in state.items())


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
@pytest.mark.parametrize("stage", [PLAIN, PAIRS], ids=["classify", "semi_siamese"])
def test_a_step_on_broken_pixels_changes_nothing(train, tmp_path, monkeypatch, stage, batch_norm):
    method = METHODS[stage["method"]["name"]]
    original, states = method.step, []

    def broken(self, batches, context):
        states.append({name: value.clone() for name, value in self.state_dict().items()})
        if len(states) == 3:
            batches = [batch._replace(image_B3HW=batch.image_B3HW * torch.nan) for batch in batches]
        return original(self, batches, context)

    monkeypatch.setattr(method, "step", broken)
    # The first step of an epoch with one step each: nothing else changes the state in between.
    folder = train(tmp_path / "run", stages=[stage | {"batch_norm": batch_norm}])
    assert all(torch.equal(value, states[3][name]) for name, value in states[2].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[1].items() if "running" not in name)
    running = [name for name in states[0] if name.startswith("network") and "running" in name]
    assert all(torch.equal(states[1][name], states[2][name]) == (batch_norm == "frozen") for name in running)
    assert len(list((folder / "nonfinite").iterdir())) == 1
    after = load_file(folder / stage["name"] / "model.safetensors")
    assert all(value.isfinite().all() for value in after.values())
