"""Pretrained weights of torchvision, arcface_torch and facelt; invalid files, which change nothing."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, ResNet, resnet50, resnet152

from facelt.config.registry import BACKBONES
from facelt.errors import UserError
from facelt.models.network import build_network
from facelt.models.pretrained import load_pretrained, matching_state


def tiny(backbone="resnet10", *, embedding="none", attention=False, size=(32, 32), dim=512):
    return build_network(backbone, image_size=size, attention=attention, embedding=embedding, dim=dim)


def saved(state, path: Path) -> Path:
    torch.save(state, path)
    return path


def arcface_state(blocks, positions: int) -> dict[str, torch.Tensor]:
    """Random weights under every name and shape of arcface_torch's backbone.pth."""
    state = {}

    def norm(name, channels):
        state.update({f"{name}.{k}": 0.5 + torch.rand(channels) for k in ("weight", "bias", "running_mean")})
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def convolution(name, out, into, size):
        state[f"{name}.weight"] = torch.randn(out, into, size, size) * (into * size * size) ** -0.5

    convolution("conv1", 64, 3, 3)
    norm("bn1", 64)
    state["prelu.weight"] = torch.rand(64)
    before = 64
    for layer, (channels, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
        for i in range(count):
            at = f"layer{layer}.{i}"
            norm(f"{at}.bn1", before)
            convolution(f"{at}.conv1", channels, before, 3)
            norm(f"{at}.bn2", channels)
            state[f"{at}.prelu.weight"] = torch.rand(channels)
            convolution(f"{at}.conv2", channels, channels, 3)
            norm(f"{at}.bn3", channels)
            if i == 0:
                convolution(f"{at}.downsample.0", channels, before, 1)
                norm(f"{at}.downsample.1", channels)
            before = channels
    norm("bn2", 512)
    state["fc.weight"], state["fc.bias"] = torch.randn(512, 512 * positions) * 0.02, torch.randn(512)
    norm("features", 512)
    state["features.weight"] = torch.ones(512)
    return state


@pytest.mark.parametrize("form", ["plain", "module.", "state_dict", "safetensors"])
def test_arcface_weights_load_and_give_the_same_embedding(form, tmp_path, plain_iresnet):
    state = arcface_state((2, 2, 2, 2), positions=4)
    stored = {f"module.{k}": v for k, v in state.items()} if form == "module." else state
    path = tmp_path / ("backbone.safetensors" if form == "safetensors" else "backbone.pth")
    if form == "safetensors":
        save_file(stored, path)
    else:
        saved({"state_dict": stored, "epoch": 3} if form == "state_dict" else stored, path)
    network = tiny("iresnet18", embedding="linear_bn")
    load_pretrained(network, path)
    assert len(matching_state(network, path)) == len(state) == len(network.state_dict())
    image = torch.randn(2, 3, 32, 32)
    flat = plain_iresnet(state, image, (2, 2, 2, 2)).flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    shifted = (flat - state["features.running_mean"]) / (state["features.running_var"] + 1e-5).sqrt()
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(image), shifted + state["features.bias"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("iresnet18", (2, 2, 2, 2)),
        ("iresnet34", (3, 4, 6, 3)),
        ("iresnet50", (3, 4, 14, 3)),
        ("iresnet100", (3, 13, 30, 3)),
        ("iresnet200", (6, 26, 60, 6)),
    ],
)
def test_every_iresnet_has_arcface_torchs_names_and_shapes(name, blocks):
    with torch.device("meta"):
        expected = {k: v.shape for k, v in arcface_state(blocks, positions=49).items()}
        network = build_network(name, image_size=(112, 112), attention=False, embedding="linear_bn")
    result = {k.partition(".")[2]: v.shape for k, v in network.state_dict().items()}
    assert result == expected


@pytest.mark.parametrize(("name", "reference"), [("resnet50", resnet50), ("resnet152", resnet152)])
def test_every_resnet_has_torchvisions_names_and_shapes(name, reference):
    with torch.device("meta"):
        expected = {k: v.shape for k, v in reference(weights=None).state_dict().items() if not k.startswith("fc.")}
        result = {k: v.shape for k, v in BACKBONES[name].build().state_dict().items()}
    assert result == expected


def test_torchvision_weights_load_without_their_classifier(tmp_path):
    reference = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7).eval()
    # Files older than PyTorch 0.4.1 have no batch counters.
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    network = tiny(embedding="fc_relu", attention=True)
    initial = {k: v.clone() for k, v in network.state_dict().items() if k.startswith(("attention.", "embedding."))}
    path = saved(state, tmp_path / "resnet10.pth")
    load_pretrained(network, path)
    assert set(matching_state(network, path)) == {f"backbone.{k}" for k in state if not k.startswith("fc.")}
    assert all(torch.equal(network.state_dict()[k], value) for k, value in initial.items())
    image = torch.randn(2, 3, 32, 32)
    reference.fc = torch.nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(network.backbone.eval()(image).mean((2, 3)), reference(image))


def test_own_weights_of_half_precision_load(tmp_path):
    source, network = tiny(embedding="linear_bn", attention=True), tiny(embedding="linear_bn", attention=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    load_pretrained(network, saved(state, tmp_path / "own.pt"))
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in network.state_dict().items())


def test_a_head_in_the_file_is_ignored(tmp_path):
    network, state = tiny(), tiny().state_dict()
    path = saved({**state, "head.weight": torch.zeros(3)}, tmp_path / "own.pth")
    load_pretrained(network, path)
    assert set(matching_state(network, path)) == set(state)
    assert all(torch.equal(value, state[k]) for k, value in network.state_dict().items())


def test_another_embedding_kind_is_ignored(tmp_path):
    source, network = tiny(embedding="linear_bn"), tiny(embedding="fc_relu")
    path = saved(source.state_dict(), tmp_path / "own.pth")
    initial = {k: v.clone() for k, v in network.state_dict().items() if k.startswith("embedding.")}
    load_pretrained(network, path)
    assert set(network.state_dict()) - set(matching_state(network, path)) == set(initial)
    assert all(torch.equal(network.state_dict()[k], value) for k, value in initial.items())


def own():
    return tiny().state_dict()


INVALID = {
    "a missing entry": (lambda: {k: v for k, v in own().items() if "conv2" not in k}, "conv2.weight is missing"),
    "another depth": (
        lambda: {**own(), "backbone.layer3.1.conv1.weight": torch.zeros(3)},
        r"unexpected entry 'backbone\.layer3\.1\.conv1\.weight'",
    ),
    "another shape": (
        lambda: {**own(), "backbone.bn1.bias": torch.zeros(3)},
        r"bn1.bias is \[3\] float32, expected \[64\]",
    ),
    "whole numbers": (lambda: {**own(), "backbone.bn1.bias": torch.zeros(64).long()}, r"bn1.bias is \[64\] int64"),
    "another model": (lambda: arcface_state((1, 1, 1, 1), 1), "conv1.weight is .*, expected"),
    "nothing known": (lambda: {"weight": torch.zeros(3)}, r"conv1.weight is missing \(0 of"),
    "not finite": (lambda: {**own(), "backbone.bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias.* not finite"),
    "no tensors": (lambda: {"epoch": 3}, "'epoch' is not a plain tensor"),
    "complex values": (lambda: {"fc.weight": torch.zeros(3).cfloat()}, "not a plain tensor"),
    "a list": (lambda: [torch.zeros(3)], "not a state dict"),
    "empty": (dict, "not a state dict"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_file_changes_nothing(case, tmp_path):
    state, message = INVALID[case]
    path = saved(state(), tmp_path / "invalid.pth")
    network = tiny()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(network, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_an_embedding_of_another_size_is_refused(tmp_path):
    path = saved(tiny(embedding="linear_bn", dim=64).state_dict(), tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"embedding.fc.weight is \[64, 512\] float32, expected .*set model\.backbone"):
        load_pretrained(tiny(embedding="linear_bn"), path)


class Hostile:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_pickle(path):
    path.write_bytes(pickle.dumps(Hostile(path.with_name("written")), protocol=2))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda path: None, "no such file"),
        ("a.ckpt", lambda path: path.touch(), "must end in .pth, .pt or .safetensors"),
        ("a.pth", lambda path: path.touch(), "not a readable PyTorch file|not read"),
        ("a.pth", lambda path: path.write_bytes(b"PK\x03\x04 truncated"), "not a readable PyTorch file|not read"),
        ("a.pth", write_pickle, "could run code"),
        ("a.pt", lambda path: torch.save(Hostile(path.with_name("written")), path), "could run code"),
        ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 20), "not a readable safetensors file"),
        ("a.safetensors", lambda path: path.touch(), "not a readable safetensors file"),
    ],
)
def test_unreadable_and_hostile_files_are_refused(name, write, message, tmp_path):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(tiny(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "written").exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=4), length=st.floats(0, 1)
)
def test_a_damaged_file_is_refused_in_one_line(damage, length, tmp_path):
    network = tiny()
    for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
        path = tmp_path / f"damaged{suffix}"
        save({"bn1.weight": torch.ones(2), "bn1.bias": torch.zeros(2)}, path)
        content = bytearray(path.read_bytes())
        for position, replacement in damage:
            start = int(position * len(content))
            content[start : start + len(replacement)] = replacement
        path.write_bytes(content[: math.ceil(length * len(content))])
        with pytest.raises(UserError, match="damaged") as caught:
            load_pretrained(network, path)
        assert "\n" not in str(caught.value)
