"""Weights of an earlier stage whose attention or embedding differs."""

import pytest
import torch

from facelt.errors import UserError
from facelt.models.network import build_network
from facelt.models.pretrained import load_stage_weights


def tiny(*, embedding="none", attention=False, backbone="resnet10", dim=512):
    return build_network(backbone, image_size=(32, 32), attention=attention, embedding=embedding, dim=dim)


def test_new_parts_keep_their_initial_weights():
    first, second = tiny(), tiny(embedding="fc_relu", attention=True)
    before = {k: v.clone() for k, v in second.state_dict().items()}
    left = load_stage_weights(second, first.state_dict())
    after = second.state_dict()
    assert set(left) == {k for k in after if not k.startswith("backbone.")} != set()
    assert all(torch.equal(after[k], before[k]) for k in left)
    assert all(torch.equal(after[k], v) for k, v in first.state_dict().items())


def test_equal_parts_are_copied():
    first, second = (tiny(embedding="linear_bn", attention=True) for _ in range(2))
    assert load_stage_weights(second, first.state_dict()) == ()
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in second.state_dict().items())


def test_an_embedding_of_another_length_stays_initial():
    left = load_stage_weights(tiny(embedding="fc_relu", dim=64), tiny(embedding="fc_relu").state_dict())
    assert left == ("embedding.linear.weight", "embedding.linear.bias")


def test_a_different_backbone_is_refused_and_nothing_changes():
    network = tiny(backbone="iresnet18")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(UserError, match=r"the earlier stage has a different backbone: backbone\.conv1\.weight is"):
        load_stage_weights(network, tiny().state_dict())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
