"""A loss or a gradient that is not finite: the run stops before the update, and the last checkpoint stays."""

import pytest
import torch

from facelt.errors import UserError
from facelt.methods import METHODS


def spoil(monkeypatch, method: str, at: int, change) -> dict[str, torch.Tensor]:
    """Changes the loss of one step, counted from 0; the returned dict then holds the weights of that moment."""
    original = METHODS[method].step
    seen = iter(range(1000))
    weights: dict[str, torch.Tensor] = {}

    def spoiled(self, batches, progress):
        output = original(self, batches, progress)
        if next(seen) == at:
            weights.update({name: value.clone() for name, value in self.named_parameters()})
            object.__setattr__(output, "loss", change(output.loss, self))
        return output

    monkeypatch.setattr(METHODS[method], "step", spoiled)
    return weights


def infinite_gradient(loss: torch.Tensor, method: torch.nn.Module) -> torch.Tensor:
    """The same value; the square root's slope at 0 is infinite."""
    return loss + (method.head.weight.sum() * 0).sqrt()


@pytest.mark.parametrize("change", [lambda loss, _: loss * torch.nan, infinite_gradient], ids=["loss", "gradient"])
def test_it_stops_before_the_update(train, plain_stage, tmp_path, monkeypatch, saved, change):
    settings = {"stages": plain_stage(), "checkpoint_every": 1}
    weights = spoil(monkeypatch, "classify", 6, change)
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", **settings)
    path = tmp_path / "run/plain/checkpoints/step-00000006"
    message = str(caught.value)
    assert message.startswith("stage plain, epoch 1, step 2: ")
    assert "\n" not in message
    assert f"the last checkpoint is kept: {path}" in message
    assert "which begins with train.rec:" in message
    facts, tensors = saved(tmp_path / "run/plain")
    assert (facts["epoch"], facts["step"]) == (1, 2)
    assert all(torch.equal(tensors[f"method.{name}"], value) for name, value in weights.items())
    assert not (tmp_path / "run/plain/model.safetensors").exists()
    # The step was bad by chance alone here, so going on from the checkpoint works.
    monkeypatch.undo()
    train(tmp_path / "run", resume=True, **settings)
    assert (tmp_path / "run/plain/model.safetensors").exists()


def test_a_first_step_that_is_not_finite_leaves_a_checkpoint_too(train, plain_stage, tmp_path, monkeypatch, saved):
    spoil(monkeypatch, "classify", 0, lambda loss, _: loss / 0)
    with pytest.raises(UserError, match="stage plain, epoch 0, step 0: the loss"):
        train(tmp_path / "run", stages=plain_stage())
    assert saved(tmp_path / "run/plain")[0]["step"] == 0


def test_the_second_stage_is_named(train, tmp_path, monkeypatch):
    spoil(monkeypatch, "dynamic_meta", 1, lambda loss, _: loss * torch.nan)
    with pytest.raises(UserError, match="stage oltr, epoch 0, step 1: the loss"):
        train(tmp_path / "run")
    assert (tmp_path / "run/plain/model.safetensors").exists()


def test_a_learning_rate_far_too_high_is_caught(train, plain_stage, tmp_path):
    with pytest.raises(UserError, match="not finite"):
        train(tmp_path / "run", stages=plain_stage(), optim={"lr": 1e30, "batch": 8})
