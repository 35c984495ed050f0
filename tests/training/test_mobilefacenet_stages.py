"""Stages on MobileFaceNet at 112 pixels: fine-tuning of pretrained weights, attention and memory, wrong weights."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from facelt.config.train import TrainConfig
from facelt.inference.model import load_model
from facelt.training.run import run
from tests.models.test_mobilefacenet import mobilefacenet_state
from tests.models.test_pretrained import arcface_state


@pytest.fixture
def values(recipe, tmp_path):
    """The recipe of two stages, with pretrained weights of width 1 and 16 values."""
    save_file(mobilefacenet_state(1, 16), tmp_path / "backbone.safetensors")
    model = {"backbone": "mobilefacenet", "width": 1, "dim": 16, "pretrained": str(tmp_path / "backbone.safetensors")}
    values = recipe(tmp_path / "run", model=model)
    values["data"] |= {"image_size": [112, 112], "resize": True}
    values["stages"] = [{**stage, "epochs": 1} for stage in values["stages"]]
    return values


def test_plain_and_oltr_stages_train_from_pretrained_weights(values):
    folder = run(TrainConfig.model_validate(values))
    plain, oltr = (load_model(folder / name, torch.device("cpu")) for name in ("plain", "oltr"))
    assert [stage["embedding"] for stage in oltr.card["config"]["stages"]] == ["gdc", "gdc"]
    assert oltr.method.network.attention.map_size == (7, 7)
    assert oltr.method.network.attention.conv_mask.weight.abs().max() > 0
    assert oltr.method.kinds == ("direct", "meta", "meta_unit")
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None]) >= 8
    state = mobilefacenet_state(1, 16)
    assert plain.method.network.state_dict().keys() >= {f"backbone.{name}" for name in state if "features" not in name}
    image = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        embeddings = oltr.method.embed(image)
        assert not torch.allclose(plain.method.features(image), oltr.method.features(image))
    assert all(value.isfinite().all() for value in embeddings.by_kind.values())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": 2}, "backbone.layers.0.layers.0.weight is [64, 3, 3, 3] float32, expected [128, 3, 3, 3]"),
        ({"dim": 32}, "embedding.features.layers.2.weight is [16, 512] float32, expected [32, 512]"),
        ({"backbone": "iresnet18", "width": None}, "backbone.conv1.weight is missing"),
        ({"pretrained": "iresnet.safetensors"}, "backbone.layers.0.layers.0.weight is missing"),
    ],
    ids=["another width", "another dim", "for an iresnet", "of an iresnet"],
)
def test_the_weights_of_another_network_are_refused_before_a_folder_is_made(
    change, expected, values, refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_file(arcface_state((1, 1, 1, 1), positions=49), tmp_path / "iresnet.safetensors")
    values["model"] |= change
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    message = refused("train", "--config", tmp_path / "recipe.yaml")
    assert message.startswith(f"error: model.pretrained: {values['model']['pretrained']}: ")
    assert expected in message
    assert "set model.backbone, model.width and model.dim to those of the file" in message
    assert not (tmp_path / "run").exists()
