"""Non-finite losses and gradients: skipped updates, recorded images, and the limit per stage."""

import json

import pytest
import torch

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.distributed.comm import rank
from facelt.errors import UserError
from facelt.training.run import run


def nan_loss(loss: torch.Tensor, method: torch.nn.Module) -> torch.Tensor:
    return loss * torch.nan


def infinite_gradient(loss: torch.Tensor, method: torch.nn.Module) -> torch.Tensor:
    """Keeps the value; the square root has an infinite slope at 0."""
    return loss + (method.head.weight.sum() * 0).sqrt()


def spoil(patch: pytest.MonkeyPatch, at: set[int], change=nan_loss, method: str = "classify") -> list[dict]:
    """Changes the loss of some steps, counted from 0; returns a list that receives the state before each step."""
    original = METHODS[method].step
    states: list[dict] = []

    def spoiled(self, batches, progress):
        states.append({name: value.clone() for name, value in self.state_dict().items()})
        output = original(self, batches, progress)
        if len(states) - 1 in at:
            object.__setattr__(output, "loss", change(output.loss, self))
        return output

    patch.setattr(METHODS[method], "step", spoiled)
    return states


@pytest.mark.parametrize("change", [nan_loss, infinite_gradient])
def test_a_step_without_an_update_is_skipped_and_its_images_are_listed(
    train, plain_stage, tmp_path, monkeypatch, metrics, capsys, change
):
    states = spoil(monkeypatch, {6}, change)
    method = {"name": "classify", "head": "margin", "margin": {"name": "adaface"}}
    folder = train(tmp_path / "run", stages=plain_stage(method=method))
    # Neither weights nor the statistics of batch norm and AdaFace have moved; in the step before they have.
    assert all(torch.equal(value, states[7][name]) for name, value in states[6].items())
    statistics = [name for name in states[6] if "running" in name or name.startswith("head.margin")]
    assert {"head.margin.norm_mean", "head.margin.norm_std"} < set(statistics)
    assert all(not torch.equal(states[6][name], states[5][name]) for name in statistics)
    assert (folder / "plain/model.safetensors").exists()
    steps = [(line["epoch"], line["step"]) for line in metrics(folder) if "loss" in line]
    assert steps == [(epoch, step) for epoch in range(2) for step in range(4) if (epoch, step) != (1, 2)]
    path = folder / "nonfinite/plain-1-2.json"
    assert [path] == list((folder / "nonfinite").iterdir())
    facts = json.loads(path.read_text())
    assert (facts["stage"], facts["epoch"], facts["step"]) == ("plain", 1, 2)
    assert (facts["loss"] == "nan") == (change is nan_loss)
    (norm,) = facts["gradient_norm_by_rank"]
    assert norm in ("nan", "inf")
    assert len(set(facts["images"])) == 8
    assert all(name.startswith("train.rec:") for name in facts["images"])
    # One name per line, for grep.
    assert all(f'\n  "{name}"' in path.read_text() for name in facts["images"])
    assert f"skipped step 1 of 3 allowed; its images: {path}" in capsys.readouterr().err


def test_too_many_stop_the_run_and_keep_the_last_checkpoint(train, plain_stage, tmp_path, monkeypatch, saved):
    settings = {"stages": plain_stage(), "checkpoint_every": 1, "max_nonfinite_steps": 1}
    with monkeypatch.context() as patch:
        states = spoil(patch, {3, 6}, infinite_gradient)
        with pytest.raises(UserError) as caught:
            train(tmp_path / "run", **settings)
    message = str(caught.value)
    assert message.startswith("stage plain, epoch 1, step 2: the loss (")
    assert "\n" not in message
    assert "max_nonfinite_steps allows only 1 such steps per stage" in message
    assert f"last checkpoint: {tmp_path / 'run/plain/checkpoints/step-00000006'}" in message
    remedy = "lower optim.lr in a new run, with another out=FOLDER, or check the images of this step: "
    assert message.endswith(f"{remedy}{tmp_path / 'run/nonfinite/plain-1-2.json'}")
    facts, tensors = saved(tmp_path / "run/plain")
    assert (facts["epoch"], facts["step"], facts["nonfinite_steps"]) == (1, 2, 1)
    assert all(torch.equal(tensors[f"method.{name}"], value) for name, value in states[6].items())
    assert not (tmp_path / "run/plain/model.safetensors").exists()
    # The count is restored: one more such step is too many again.
    with monkeypatch.context() as patch:
        spoil(patch, {1})
        with pytest.raises(UserError, match="epoch 1, step 3: the loss"):
            train(tmp_path / "run", resume=True, **settings)
    # These steps were spoiled by the test only, so resuming from the checkpoint works.
    train(tmp_path / "run", resume=True, **settings)
    assert (tmp_path / "run/plain/model.safetensors").exists()


def test_the_first_stops_the_run_if_none_is_allowed(train, plain_stage, tmp_path, monkeypatch, saved):
    spoil(monkeypatch, {0}, lambda loss, _: loss / 0)
    with pytest.raises(UserError, match=r"stage plain, epoch 0, step 0: the loss \(inf\).* allows only 0 such steps"):
        train(tmp_path / "run", stages=plain_stage(), max_nonfinite_steps=0)
    assert saved(tmp_path / "run/plain")[0]["step"] == 0


def test_a_diverging_learning_rate_stops_its_stage(train, plain_stage, tmp_path):
    with pytest.raises(UserError, match=r"stage plain, .* not finite"):
        train(tmp_path / "run", stages=plain_stage(), optim={"lr": 1e30, "batch": 8})
    assert len(list((tmp_path / "run/nonfinite").iterdir())) == 4


def run_spoiled_on_one_rank(values: dict) -> None:
    """Makes the gradient of the second rank's classes infinite in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {2, 5}, lambda loss, method: infinite_gradient(loss, method) if rank() else loss)
        run(TrainConfig.model_validate(values))


def test_all_ranks_skip_a_step_that_is_nonfinite_on_one(recipe, plain_stage, rank_pool, tmp_path, saved):
    values = recipe(tmp_path / "run", stages=plain_stage(), max_nonfinite_steps=1)
    with pytest.raises(AssertionError) as caught:
        rank_pool.run(run_spoiled_on_one_rank, 2, values)
    # Both ranks raised the same error.
    assert str(caught.value).count("UserError: stage plain, epoch 1, step 1: the loss") == 2
    facts = json.loads((tmp_path / "run/nonfinite/plain-0-2.json").read_text())
    assert len(set(facts["images"])) == 8
    first, second = facts["gradient_norm_by_rank"]
    assert isinstance(first, float)
    assert second in ("nan", "inf")
