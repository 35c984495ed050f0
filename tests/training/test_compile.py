"""Training with a compiled network: equal to the eager one up to rounding, with the same names."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from facelt.config.registry import BACKBONES
from facelt.errors import UserError
from facelt.models.backbones import Backbone


def _patches() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8), nn.ReLU())


@pytest.fixture(autouse=True)
def _small_backbone(monkeypatch):
    """A network that is compiled in seconds."""
    monkeypatch.setitem(BACKBONES, "resnet10", Backbone(_patches, channels=8, stride=16))
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="on the CPU torch compiles with g++")
def test_a_compiled_network_trains_as_the_eager_one(train, plain_stage, tmp_path, monkeypatch):
    calls, build = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: calls.append(module) or build(module))
    stages = plain_stage(embedding="none", epochs=1)
    folders = [train(tmp_path / str(compiled), stages=stages, compile=compiled) for compiled in (True, False)]
    assert len(calls) == 1
    compiled, eager = (load_file(folder / "plain/model.safetensors") for folder in folders)
    assert compiled.keys() == eager.keys()
    assert "network.backbone.0.weight" in eager
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


def test_a_compiled_run_is_resumed_from_checkpoints_with_the_same_names(
    train, plain_stage, tmp_path, monkeypatch, interrupt, assert_same_weights, saved
):
    build = torch.compile
    # Captures the graph, and generates no code.
    monkeypatch.setattr(torch, "compile", lambda module: build(module, backend="eager"))
    settings = {"stages": plain_stage(), "compile": True, "checkpoint_every": 2}
    straight = train(tmp_path / "straight", **settings)
    with pytest.raises(interrupt("classify", 5)):
        train(tmp_path / "run", **settings)
    _, tensors = saved(tmp_path / "run/plain")
    assert not any("_orig_mod" in name for name in tensors)
    assert "method.network.backbone.0.weight" in tensors
    folder = train(tmp_path / "run", resume=True, **settings)
    assert_same_weights(folder / "plain/model.safetensors", straight / "plain/model.safetensors")


def test_a_compiler_that_fails_is_an_error_of_one_line(train, plain_stage, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no space left\non the device\n\nSet TORCHDYNAMO_VERBOSE=1")

    build = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: build(module, backend=broken))
    message = (
        r"^compile: the network of stage plain cannot be compiled for cpu \(.*no space left on the device\); .* set "
    )
    with pytest.raises(UserError, match=message + "compile: false in this run, with --resume$") as caught:
        train(tmp_path / "run", stages=plain_stage(), compile=True)
    assert "\n" not in str(caught.value)
