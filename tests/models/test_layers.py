"""Modulated attention against the authors' output."""

import numpy as np
import pytest
import torch

from facelt.models.layers import ATTENTIONS, ModulatedAttention, SpatialAttention


def test_equals_the_released_code(golden):
    reference = np.load(golden / "oltr_modulated_attention.npz")
    attention = ModulatedAttention(16, 7, 7)
    attention.load_state_dict(
        {name: torch.from_numpy(reference[name.replace(".", "_")]) for name in attention.state_dict()}
    )
    x = torch.from_numpy(reference["x"]).requires_grad_()
    out = attention(x)
    (out.flatten() * torch.arange(out.numel(), dtype=torch.float32).sin()).sum().backward()
    np.testing.assert_allclose(out.detach(), reference["out"], atol=1e-5)
    np.testing.assert_allclose(x.grad, reference["grad_x"], atol=1e-5)


def test_changes_nothing_at_first_and_can_learn():
    attention = ModulatedAttention(8, 3, 5)
    x = torch.randn(2, 8, 3, 5)
    out = attention(x)
    assert torch.equal(out, x)
    (out * torch.randn_like(out)).sum().backward()
    assert attention.conv_mask.weight.grad.abs().sum() > 0


def test_memory_format_does_not_matter():
    attention = ModulatedAttention(8, 3, 5)
    torch.nn.init.normal_(attention.conv_mask.weight)
    x = torch.randn(2, 8, 3, 5)
    expected = attention(x)
    result = attention.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected)


def test_plain_spatial_attention_weighs_each_position_of_the_map_itself():
    attention = SpatialAttention(4, 2, 3)
    x = torch.randn(5, 4, 2, 3)
    logits = x.reshape(5, 24).numpy() @ attention.fc_spatial.weight.detach().numpy().T
    logits = np.exp(logits + attention.fc_spatial.bias.detach().numpy())
    share = (logits / logits.sum(1, keepdims=True)).reshape(5, 1, 2, 3)
    np.testing.assert_allclose(attention(x).detach(), x.numpy() * (1 + share), rtol=1e-5, atol=1e-6)
    assert set(attention.state_dict()) == {"fc_spatial.weight", "fc_spatial.bias"}


@pytest.mark.parametrize("kind", ATTENTIONS.values())
def test_another_map_size_is_refused(kind):
    with pytest.raises(ValueError, match="4x4, the network needs 7x7"):
        kind(8, 7, 7)(torch.zeros(1, 8, 4, 4))
