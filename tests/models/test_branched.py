"""Multi-branch networks: shared and separate layers, and the inputs they take."""

import pytest
import torch
from torchvision.transforms.v2.functional import resize

from facelt.config.registry import BACKBONES
from facelt.errors import UserError
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network
from facelt.models.pretrained import load_stage_weights

IMAGE = (32, 32)


def build(backbone="resnet10", split="layer2", count=3, width=1.0, attention=False, embedding="none", dim=16):
    return build_network(
        backbone,
        image_size=IMAGE,
        attention=attention,
        embedding=embedding,
        dim=dim,
        branches=BranchSpec(count, split, width),
    )


REGIONS = ((0, 0, 32, 32), (4, 2, 28, 18), (0, 12, 20, 32))


def build_of_regions(**changes):
    branches = BranchSpec(**{"count": 3, "split": "none", "regions": REGIONS, "region_size": (24, 16), **changes})
    return build_network("resnet10", image_size=IMAGE, attention=True, embedding="fc_relu", dim=16, branches=branches)


def images(batch=4, seed=0):
    return torch.randn(batch, 3, *IMAGE, generator=torch.Generator().manual_seed(seed))


def plain_network(network, branch, image_size=IMAGE):
    """A plain network with the weights of the trunk and one branch."""
    plain = build_network("resnet10", image_size=image_size, attention=True, embedding="fc_relu", dim=16)
    own = {}
    for name, value in network.state_dict().items():
        part, owner, rest = name.split(".", 2)
        if owner == "branches":
            owner, rest = rest.split(".", 1)
        if owner in ("trunk", str(branch)):
            own[f"{part}.{rest}"] = value
    plain.load_state_dict(own)
    return plain


@pytest.mark.parametrize("split", ["none", "layer1", "layer2", "layer3", "last_block"])
def test_trunk_and_branch_together_are_a_plain_network(split):
    network = build(split=split, attention=True, embedding="fc_relu").train()
    for attention in network.attention:
        torch.nn.init.normal_(attention.conv_mask.weight, std=0.01)
    feature_BKD = network(images())
    assert feature_BKD.shape == (4, network.branches, network.dim) == (4, 3, 16)
    for branch in range(3):
        expected_BD = plain_network(network, branch).train()(images())
        torch.testing.assert_close(feature_BKD[:, branch], expected_BD, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(feature_BKD[:, 0], feature_BKD[:, 1])


def test_a_branch_of_a_region_is_a_plain_network_on_that_box():
    network = build_of_regions().eval()
    for inputs in ([images()], [images(seed=seed) for seed in range(3)]):
        feature_BKD = network(*inputs)
        for branch, (left, top, right, bottom) in enumerate(REGIONS):
            box = inputs[branch % len(inputs)][:, :, top:bottom, left:right]
            # One image at a time, by torchvision.
            resized = torch.stack([resize(image, [24, 16], antialias=True) for image in box])
            plain = plain_network(network, branch, image_size=(24, 16)).eval()
            torch.testing.assert_close(feature_BKD[:, branch], plain(resized), rtol=1e-4, atol=1e-5)


def test_a_region_beyond_the_image_is_refused():
    for box in ((0, 0, 33, 32), (0, 8, 32, 33)):
        with pytest.raises(
            UserError, match=rf"^branches\.regions: \[0, .*, {box[3]}\] exceeds the image of 32 x 32 pix"
        ):
            build_of_regions(regions=(*REGIONS[:2], box))


@pytest.mark.parametrize("split", ["none", "layer2", "last_block"])
def test_equal_inputs_for_all_branches_are_one_input(split):
    network = build(split=split).eval()
    torch.testing.assert_close(network(images(), images(), images()), network(images()))
    own_BKD = network(images(seed=1), images(seed=2), images(seed=3))
    for branch in range(3):
        torch.testing.assert_close(own_BKD[:, branch], network(images(seed=branch + 1))[:, branch])


def test_each_input_has_separate_batch_statistics():
    network = build(split="layer3", count=2).train()
    torch.testing.assert_close(network(images(), 5 * images(seed=1))[:, 0], network(images())[:, 0])


@pytest.mark.parametrize(("split", "shared"), [("none", False), ("layer1", True)])
def test_a_branchs_gradient_stays_in_its_branch_and_the_trunk(split, shared):
    network = build(split=split, attention=True, embedding="linear_bn")
    (network(images())[:, 1] * torch.randn(4, 16)).sum().backward()
    learning = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(name.startswith("backbone.trunk.") for name in learning) == shared
    branch_names = {
        name.removeprefix("backbone.branches.") for name in learning if not name.startswith("backbone.trunk.")
    }
    assert {name.removeprefix("attention.").removeprefix("embedding.").partition(".")[0] for name in branch_names} == {
        "1"
    }


def test_branches_start_with_different_weights():
    state = build(split="layer3").state_dict()
    first, second = (state[f"backbone.branches.{k}.layer4.0.conv1.weight"] for k in (0, 1))
    assert not torch.equal(first, second)


def basic_stage(channels_in: int, channels: int, blocks: int) -> int:
    return 9 * channels * (channels_in + (2 * blocks - 1) * channels) + 4 * blocks * channels


def bottleneck_stage(channels_in: int, planes: int, blocks: int) -> int:
    out = 4 * planes
    total = channels_in * out + 2 * out
    for before in (channels_in, *[out] * (blocks - 1)):
        total += before * planes + 9 * planes * planes + planes * out + 4 * planes + 2 * out
    return total


def test_rides_widths_on_cifar_and_imagenet():
    """Widths of RIDE: 24 and 48 channels behind a shared 16; 192 and 384 planes behind shared 64 and 128."""
    cifar = build("resnet32", "layer1", width=0.75)
    trunk = 27 * 16 + 32 + basic_stage(16, 16, 5)
    branch = basic_stage(16, 24, 5) + basic_stage(24, 48, 5)
    assert sum(p.numel() for p in cifar.backbone.trunk.parameters()) == trunk
    assert sum(p.numel() for p in cifar.parameters()) == trunk + 3 * branch
    assert cifar(images()).shape == (4, 3, cifar.dim) == (4, 3, 48)
    with torch.device("meta"):
        large = build("resnet50", "layer2", width=0.75)
    trunk = 3 * 64 * 49 + 128 + bottleneck_stage(64, 64, 3) + bottleneck_stage(256, 128, 4)
    branch = bottleneck_stage(512, 192, 6) + bottleneck_stage(768, 384, 3)
    assert sum(p.numel() for p in large.parameters()) == trunk + 3 * branch
    assert large.dim == 1536


@pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - {"densenet_bc100", "mobilefacenet"}))
def test_every_residual_network_has_branches_of_its_last_block(backbone):
    with torch.device("meta"):
        network = build(backbone, "last_block", count=2)
        plain = BACKBONES[backbone].build()
    branch = sum(p.numel() for p in network.backbone.branches[0].parameters())
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in plain.parameters()) + branch
    assert {name.split(".")[0] for name, _ in network.backbone.branches[0].named_parameters()} <= {
        *("layer3", "layer4", "bn2"),
    }


def test_the_narrow_face_backbone_runs():
    network = build("iresnet18", "layer2", width=0.5, embedding="linear_bn")
    assert network(images()).shape == (4, 3, 16)
    assert network.backbone(images())[0].shape == (4, 256, 2, 2)


def test_a_stage_starts_only_from_the_same_branches():
    first, second = build(embedding="fc_relu"), build(embedding="fc_relu")
    assert load_stage_weights(second, first.state_dict()) == ()
    torch.testing.assert_close(second.eval()(images()), first.eval()(images()))
    with pytest.raises(UserError, match="the earlier stage has a different backbone"):
        load_stage_weights(build(split="layer1"), first.state_dict())


def test_channels_last_gives_the_same_feature():
    network = build("resnet32", "layer1", width=0.75).eval()
    with torch.inference_mode():
        expected = network(images())
        result = network.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


def test_impossible_splits_and_other_numbers_of_inputs_are_refused():
    with pytest.raises(UserError, match="resnet32 cannot be split at layer3; choose none, layer1, layer2, last_bl"):
        build("resnet32", "layer3")
    for backbone in ("densenet_bc100", "mobilefacenet"):
        with pytest.raises(UserError, match=f"{backbone} cannot be split at last_block; choose none"):
            build(backbone, "last_block")
        with pytest.raises(UserError, match=rf"the channels of {backbone} cannot be changed; remove branches\.width"):
            build(backbone, "layer1", width=0.5)
    with pytest.raises(ValueError, match="2 inputs for 3 branches"):
        build()(images(), images())
