"""MobileFaceNet: names, shapes and output of arcface_torch's networks, a public network's embeddings, wrong files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.data.decode import decode_image
from facelt.data.pairs import read_pairs
from facelt.data.transforms import normalise_images
from facelt.errors import UserError
from facelt.models.network import build_network
from facelt.models.pretrained import arcface_state_dict, load_pretrained, matching_state
from tests.models.conftest import plain_mobilefacenet
from tests.models.test_pretrained import arcface_state

BLOCKS = {1: (1, 4, 6, 2), 2: (1, 4, 6, 2), 4: (2, 8, 12, 4)}


def network(width=None, dim=512, size=(112, 112), attention=False, backbone="mobilefacenet", embedding="gdc"):
    return build_network(backbone, image_size=size, attention=attention, embedding=embedding, dim=dim, width=width)


def mobilefacenet_state(width: int, dim: int, positions=(7, 7)) -> dict[str, torch.Tensor]:
    """Random weights under every name and shape of arcface_torch's backbone.pth."""
    state, blocks, wide = {}, BLOCKS[width], 128 * width

    def norm(name, channels):
        state.update({f"{name}.{k}": 0.5 + torch.rand(channels) for k in ("weight", "bias", "running_mean")})
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def convolution(at, out, into, size, prelu=True):
        state[f"{at}.layers.0.weight"] = torch.randn(out, into, *size) * (into * size[0] * size[1]) ** -0.5
        norm(f"{at}.layers.1", out)
        if prelu:
            state[f"{at}.layers.2.weight"] = torch.rand(out)

    def bottleneck(at, out, into, inner):
        convolution(f"{at}.layers.0", inner, into, (1, 1))
        convolution(f"{at}.layers.1", inner, 1, (3, 3))
        convolution(f"{at}.layers.2", out, inner, (1, 1), prelu=False)

    def stage(at, channels, inner, count):
        for i in range(count):
            bottleneck(f"{at}.layers.{i}", channels, channels, inner)

    convolution("layers.0", wide // 2, 3, (3, 3))
    if blocks[0] == 1:
        convolution("layers.1", wide // 2, width, (3, 3))
    else:
        stage("layers.1", wide // 2, 128, blocks[0])
    bottleneck("layers.2", wide // 2, wide // 2, 128)
    stage("layers.3", wide // 2, 128, blocks[1])
    bottleneck("layers.4", wide, wide // 2, 256)
    stage("layers.5", wide, 256, blocks[2])
    bottleneck("layers.6", wide, wide, 512)
    stage("layers.7", wide, 256, blocks[3])
    convolution("conv_sep", 512, wide, (1, 1))
    convolution("features.layers.0", 512, 1, positions, prelu=False)
    state["features.layers.2.weight"] = torch.randn(dim, 512) * 512**-0.5
    norm("features.layers.3", dim)
    return state


@pytest.mark.parametrize(
    ("width", "dim", "parameters"), [(1, 128, 1_003_136), (2, 512, 2_059_520), (4, 512, 6_314_880)]
)
def test_names_and_shapes_are_arcface_torchs(width, dim, parameters):
    with torch.device("meta"):
        model, expected = network(width, dim), mobilefacenet_state(width, dim)
    result = {name: value.shape for name, value in arcface_state_dict(model).items()}
    assert result == {name: value.shape for name, value in expected.items()}
    assert sum(value.numel() for value in model.parameters()) == parameters


def test_width_1_has_the_names_and_shapes_of_the_public_file(real_data):
    with torch.device("meta"):
        result = {name: list(value.shape) for name, value in arcface_state_dict(network(1, 128)).items()}
    with safe_open(real_data / "models/mobilefacenet_y1.safetensors", framework="pt") as file:
        assert result == {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def test_the_default_width_is_that_of_mbf():
    with torch.device("meta"):
        assert {n: v.shape for n, v in network().state_dict().items()} == {
            name: value.shape for name, value in network(2).state_dict().items()
        }


@pytest.mark.parametrize(("width", "size", "positions"), [(1, (112, 112), (7, 7)), (4, (33, 48), (3, 3))])
def test_the_output_equals_a_plain_computation(width, size, positions, tmp_path):
    state = mobilefacenet_state(width, 32, positions)
    save_file(state, tmp_path / "backbone.safetensors")
    model = network(width, 32, size)
    load_pretrained(model, tmp_path / "backbone.safetensors")
    assert len(matching_state(model, tmp_path / "backbone.safetensors")) == len(state) == len(model.state_dict())
    image = torch.randn(2, 3, *size)
    map_BChw, embedding_BD = plain_mobilefacenet(state, image, BLOCKS[width])
    assert map_BChw.shape[1:] == (512, *positions)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval().backbone(image), map_BChw, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(model(image), embedding_BD, rtol=1e-3, atol=1e-3)


def test_the_initial_weights_keep_the_variance_of_what_leaves_a_layer():
    model = network(2, 256)
    assert model.backbone.conv_sep.layers[0].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert model.embedding.features.layers[2].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)


def test_without_positions_the_averaged_map_is_read():
    model = network(backbone="resnet10", size=(64, 64), dim=8).eval()
    assert model.embedding.features.layers[0].layers[0].weight.shape == (512, 1, 1, 1)
    map_BChw = torch.randn(3, 512, 2, 2)
    mean_BC11 = map_BChw.mean((2, 3), keepdim=True)
    with torch.inference_mode():
        torch.testing.assert_close(model.embedding(map_BChw), model.embedding.features(mean_BC11))


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the network needs 4x3"):
        network(1, size=(64, 48))(torch.zeros(2, 3, 64, 64))


def public_network_embeddings(real_data, payloads) -> torch.Tensor:
    """Embeddings of encoded images by InsightFace's model-y1, image and mirror image averaged."""
    pixels = torch.from_numpy(np.stack([decode_image(payload) for payload in payloads]))
    image = normalise_images(pixels, (0.5,) * 3, (0.5,) * 3)
    model = network(1, 128).eval()
    load_pretrained(model, real_data / "models/mobilefacenet_y1.safetensors")
    with torch.inference_mode():
        return model(image) + model(image.flip(-1))


def test_a_public_networks_embeddings_are_reproduced(real_data):
    """Those of 31 probes, which were embedded before they were stored as JPEG."""
    folder = real_data / "faces"
    with np.load(folder / "embeddings.npz") as arrays:
        paths, expected_ND = arrays["facescrub_paths"][::20], arrays["facescrub"][::20].astype(np.float32)
    payloads = [(folder / "megaface/facescrub_images" / path).read_bytes() for path in paths.tolist()]
    cosine_N = F.cosine_similarity(public_network_embeddings(real_data, payloads), torch.from_numpy(expected_ND))
    assert cosine_N.mean() > 0.999
    assert cosine_N.min() > 0.997


def test_a_public_networks_embeddings_of_the_same_bytes_are_equal(real_data):
    folder = real_data / "verification"
    with np.load(folder / "lfw600_embeddings.npz") as arrays:
        expected_ND = torch.from_numpy(arrays["embeddings"].astype(np.float32))
    pairs = read_pairs(folder / "lfw600_bytes.bin")
    rows = np.arange(0, len(pairs.images), 50)
    embedding_ND = public_network_embeddings(real_data, [pairs.images[row] for row in rows])
    assert F.cosine_similarity(embedding_ND, expected_ND[pairs.first_U[rows]]).min() > 0.9999


@pytest.mark.parametrize(
    ("settings", "state", "message"),
    [
        (
            {"width": 2, "dim": 16},
            lambda: mobilefacenet_state(1, 16),
            r"backbone\.layers\.0\.layers\.0\.weight is \[64, 3, 3, 3\] float32, expected \[128, 3, 3, 3\]",
        ),
        (
            {"width": 1, "dim": 32},
            lambda: mobilefacenet_state(1, 16),
            r"embedding\.features\.layers\.2\.weight is \[16, 512\] float32, expected \[32, 512\]",
        ),
        (
            {"width": 1, "dim": 16},
            lambda: arcface_state((1, 1, 1, 1), positions=1),
            r"backbone\.layers\.0\.layers\.0\.weight is missing \(0 of ",
        ),
        (
            {"backbone": "iresnet18", "embedding": "linear_bn", "dim": 16},
            lambda: mobilefacenet_state(1, 16),
            r"backbone\.conv1\.weight is missing \(0 of ",
        ),
    ],
    ids=["another width", "another dim", "iresnet for mobilefacenet", "mobilefacenet for iresnet"],
)
def test_the_weights_of_another_network_change_nothing(settings, state, message, tmp_path):
    save_file(state(), tmp_path / "other.safetensors")
    model = network(**settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(model, tmp_path / "other.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'other.safetensors'}: ")
    assert "set model.backbone, model.width and model.dim to those of the file" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_width_that_the_backbone_does_not_have_is_refused(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    for model, message in (
        ({"backbone": "mobilefacenet", "width": 3}, "model.width: the backbone has the widths 1, 2, 4, not 3"),
        ({"backbone": "iresnet18", "width": 2}, "model.width: the backbone has only one width; remove the key"),
        ({"width": 1}, "model.width: the backbone has only one width; remove the key"),
        ({"backbone": "mobilefacenet", "width": 1.5}, "model.width: 1.5: input should be a valid integer"),
        ({"backbone": "mobilefacenet", "width": True}, "model.width: True: input should be a valid integer"),
    ):
        path.write_text(yaml.safe_dump(recipe(tmp_path / "run", model=model)))
        with pytest.raises(UserError) as caught:
            load_config(path, TrainConfig)
        assert str(caught.value) == f"{path}: {message}"
    with pytest.raises(UserError, match="the backbone has the widths 1, 2, 4, not 8"):
        network(8)


@pytest.mark.parametrize(("backbone", "default"), [("mobilefacenet", "gdc"), ("iresnet18", "linear_bn")])
def test_a_stage_without_embedding_has_that_of_its_backbone(backbone, default, recipe, tmp_path):
    values = recipe(tmp_path / "run", model={"backbone": backbone})
    values["stages"][1]["embedding"] = "fc_relu"
    config = TrainConfig.model_validate(values)
    assert [stage.embedding for stage in config.stages] == [default, "fc_relu"]
    # What is recorded in a card names the layer, so that it is read alike after a change of the default.
    assert config.model_dump(mode="json")["stages"][0]["embedding"] == default


def test_a_card_of_an_earlier_version_is_read_as_before(recipe, tmp_path):
    config = TrainConfig.model_validate(recipe(tmp_path / "run"))
    recorded = config.model_dump(mode="json")
    del recorded["model"]["width"]
    assert [stage["embedding"] for stage in recorded["stages"]] == ["linear_bn", "linear_bn"]
    assert TrainConfig.model_validate(recorded) == config
