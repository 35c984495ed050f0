"""Safetensors export: the card describes the network, and both naming schemes load to the same embedding."""

import json

import pytest
import torch
from safetensors.torch import load_file

from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.export.safetensors import export_network
from facelt.inference.model import load_model
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network
from facelt.models.pretrained import load_pretrained, matching_state
from facelt.training.run import run
from recordio_tools.atomic_io import sha256_of
from tests.models.conftest import plain_iresnet, plain_mobilefacenet
from tests.models.test_mobilefacenet import mobilefacenet_state
from tests.models.test_pretrained import arcface_state

NARROW = {"backbone": "mobilefacenet", "width": 1}


def built_from(card: dict):
    """Builds the network from its card alone."""
    outline = card["network"]
    return build_network(
        outline["backbone"],
        image_size=tuple(card["preprocessing"]["image_size"]),
        attention=outline["attention"],
        embedding=outline["embedding"],
        dim=outline["dim"],
        width=outline["width"],
        branches=outline["branches"] and BranchSpec(**outline["branches"]),
    )


@pytest.mark.parametrize(
    ("names", "stage"),
    [
        ("facelt", {"method": {"name": "dynamic_meta"}, "attention": True}),
        ("facelt", {"method": {"name": "ride"}, "branches": {"count": 2, "split": "none"}}),
        ("facelt", {"method": {"name": "classify"}, "attention": "spatial", "model": {"backbone": "iresnet18"}}),
        ("facelt", {"method": {"name": "classify"}, "attention": True, "model": NARROW}),
        ("facelt", {"method": {"name": "classify"}, "embedding": "linear_bn", "model": NARROW}),
        ("arcface_torch", {"method": {"name": "classify"}, "model": {"backbone": "iresnet18"}}),
        ("arcface_torch", {"method": {"name": "classify"}, "model": NARROW}),
    ],
)
def test_a_network_is_built_from_its_card_and_embeds_as_the_model(names, stage, build_model, tmp_path):
    model = build_model(**stage)
    path = tmp_path / "new/network.safetensors"
    card_path = export_network(model, path)
    assert card_path == tmp_path / "new/network.json"
    card = json.loads(card_path.read_text())
    assert card["names"] == names
    assert card["weights_sha256"] == sha256_of(path)
    assert card["preprocessing"] == model.card["preprocessing"]
    assert path.stat().st_mode == card_path.stat().st_mode, "who may read the card may read the weights"
    assert not any("head" in name for name in load_file(path))
    network = built_from(card)
    load_pretrained(network, path)
    assert set(matching_state(network, path)) == set(network.state_dict())
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), model.method.network(image))


def test_an_iresnets_names_are_arcface_torchs(build_model, tmp_path):
    model = build_model({"name": "classify"}, model={"backbone": "iresnet18"})
    export_network(model, tmp_path / "network.safetensors")
    names = load_file(tmp_path / "network.safetensors").keys()
    assert {"conv1.weight", "prelu.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn3.bias"} <= names
    assert {"bn2.running_mean", "fc.weight", "fc.bias", "features.weight", "features.running_var"} <= names
    assert not any(name.startswith(("backbone.", "embedding.")) for name in names)


def iresnet_embedding(state, image):
    flat_ND = plain_iresnet(state, image, (2, 2, 2, 2)).flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    centred_ND = flat_ND - state["features.running_mean"]
    return centred_ND / (state["features.running_var"] + 1e-5).sqrt() + state["features.bias"]


def mobilefacenet_embedding(state, image):
    _, embedding_ND = plain_mobilefacenet(state, image, (1, 4, 6, 2))
    return embedding_ND


@pytest.mark.parametrize(
    ("network", "new_state", "embedding_of"),
    [
        ({"backbone": "iresnet18"}, lambda: arcface_state((2, 2, 2, 2), positions=4), iresnet_embedding),
        ({**NARROW, "dim": 16}, lambda: mobilefacenet_state(1, 16, positions=(2, 2)), mobilefacenet_embedding),
    ],
    ids=["iresnet", "mobilefacenet"],
)
def test_arcface_torchs_weights_become_a_model_and_go_out_as_they_came(
    network, new_state, embedding_of, recipe, tmp_path
):
    """Loaded by a stage without epochs; the embedding equals that of arcface_torch's network."""
    state = new_state()
    torch.save(state, tmp_path / "backbone.pth")
    values = recipe(tmp_path / "run", model={**network, "pretrained": str(tmp_path / "backbone.pth")})
    values["stages"] = [{**values["stages"][0], "epochs": 0}]
    model = load_model(run(TrainConfig.model_validate(values)), torch.device("cpu"))

    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found_ND = model.method.embed(image).by_kind["direct"]
    expected_ND = embedding_of(state, image) + embedding_of(state, image.flip(-1))
    torch.testing.assert_close(found_ND, expected_ND / expected_ND.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-5)

    export_network(model, tmp_path / "network.safetensors")
    returned = load_file(tmp_path / "network.safetensors")
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[name], value) for name, value in state.items())


def test_a_place_that_cannot_be_written_is_named(build_model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*network\.safetensors.*--out") as caught:
        export_network(build_model({"name": "classify"}), tmp_path / "file/network.safetensors")
    assert "\n" not in str(caught.value)
