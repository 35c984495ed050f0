"""Network of backbone, attention and embedding: features, parameter names, memory formats, refused settings."""

import pytest
import torch

from facelt.config.registry import BACKBONES, EMBEDDINGS
from facelt.errors import UserError
from facelt.models.layers import ModulatedAttention
from facelt.models.network import build_network


def tiny(embedding="linear_bn", *, backbone="resnet10", attention=True, size=(64, 48), dim=512):
    return build_network(backbone, image_size=size, attention=attention, embedding=embedding, dim=dim)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("backbone", ["resnet10", "iresnet18", "mobilefacenet"])
@pytest.mark.parametrize("attention", [True, False])
def test_feature_shape_and_gradients(backbone, embedding, attention):
    network = tiny(embedding, backbone=backbone, attention=attention)
    feature = network(torch.randn(2, 3, 64, 48))
    assert feature.shape == (2, 512) == (2, network.dim)
    (feature * torch.randn_like(feature)).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert {name.partition(".")[0] for name, _ in network.named_parameters()} <= {"backbone", "attention", "embedding"}
    assert any(name.startswith("attention.") for name in network.state_dict()) == attention


def test_dim_governs_the_linear_kinds_alone():
    assert tiny("linear_bn", dim=64)(torch.randn(2, 3, 64, 48)).shape == (2, 64)
    assert tiny("fc_relu", dim=64).dim == 64
    assert build_network("resnet50", image_size=(64, 64), attention=False, embedding="none", dim=64).dim == 2048


def test_embeddings_equal_their_definitions():
    map_BChw = torch.randn(4, 6, 3, 2)
    mean = map_BChw.mean((2, 3))
    torch.testing.assert_close(EMBEDDINGS["none"](6, 5, None)(map_BChw), mean)
    relu = EMBEDDINGS["fc_relu"](6, 5, None)
    expected = (mean @ relu.linear.weight.T + relu.linear.bias).clamp(min=0)
    torch.testing.assert_close(relu(map_BChw), expected)
    for map_size, flat in [(None, mean), ((3, 2), map_BChw.reshape(4, -1))]:
        layer = EMBEDDINGS["linear_bn"](6, 5, map_size)
        y = flat @ layer.fc.weight.T + layer.fc.bias
        expected = (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(layer(map_BChw), expected)
        assert not layer.features.weight.requires_grad


@pytest.mark.parametrize("backbone", ["resnet10", "iresnet18"])
def test_channels_last_gives_the_same_feature(backbone):
    network = tiny(backbone=backbone).eval()
    torch.nn.init.normal_(network.attention.conv_mask.weight, std=0.01)
    image = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        expected = network(image)
        result = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_bf16_autocast_runs_and_is_finite():
    network = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature = network(torch.randn(2, 3, 64, 48))
    assert feature.isfinite().all()


def test_the_seed_decides_the_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(tiny().state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_attention_is_built_for_each_backbones_own_map():
    with torch.device("meta"):
        sizes = {
            name: build_network(name, image_size=(112, 112), attention=True, embedding="linear_bn").attention.map_size
            for name in BACKBONES
        }
    plain = {name: (7, 7) if name.startswith(("iresnet", "mobilefacenet")) else (4, 4) for name in BACKBONES}
    assert sizes == {**plain, "resnet32": (28, 28), "densenet_bc100": (28, 28)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet51"}, "unknown backbone 'resnet51'; allowed: resnet10"),
        ({"embedding": "linear"}, "unknown embedding 'linear'; allowed: linear_bn"),
        ({"size": (0, 112)}, "image size 0x112"),
        ({"dim": 0}, "dim 0"),
    ],
)
def test_wrong_names_and_values_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        tiny(**arguments)


def test_an_image_of_another_size_is_refused_where_positions_count():
    with pytest.raises(ValueError, match="the network needs 4x3"):
        tiny(backbone="iresnet18", attention=False)(torch.zeros(2, 3, 64, 64))


def test_a_seed_gives_one_network_drawn_part_by_part():
    torch.manual_seed(5)
    network = tiny("linear_bn", size=(64, 64), dim=16)
    torch.manual_seed(5)
    parts = {"embedding": EMBEDDINGS["linear_bn"](512, 16, None), "backbone": BACKBONES["resnet10"].build()}
    parts["attention"] = ModulatedAttention(512, 2, 2)
    for name, part in parts.items():
        own = getattr(network, name).state_dict()
        assert all(torch.equal(value, own[key]) for key, value in part.state_dict().items()), name
