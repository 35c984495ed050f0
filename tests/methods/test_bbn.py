"""BBN: its step against the mixture computed pair by pair, and inference.

B pairs of images, D feature of a branch, C classes.
"""

import math

import pytest
import torch
from torch import nn

from facelt.config.registry import METHODS
from facelt.config.train import MethodSettings
from facelt.errors import UserError
from facelt.methods.base import SamplerSpec, StepContext, TrainBatch
from tests.methods.small_branches import branched_network

CLASSES, DIM, PAIRS, EPOCHS = 5, 4, 6, 10


def bbn(branches: int = 2) -> nn.Module:
    method = METHODS["bbn"](MethodSettings(name="bbn"), branched_network(branches, DIM), CLASSES).double().eval()
    nn.init.normal_(method.head.bias)
    return method


@pytest.fixture
def batches() -> list[TrainBatch]:
    random = torch.Generator().manual_seed(1)
    image_B = torch.randn(2, PAIRS, 3, 2, 2, generator=random, dtype=torch.float64)
    label_B = torch.randint(0, CLASSES, (2, PAIRS), generator=random)
    return [TrainBatch(*batch) for batch in zip(image_B, label_B, strict=True)]


def at(epoch: int) -> StepContext:
    return StepContext(epoch, EPOCHS, 0, 3)


def plain_loss(method: nn.Module, batches: list[TrainBatch], epoch: int) -> float:
    """Returns the loss of the mixture, computed by scalars; T = epoch + 1, counted from 1."""
    a = 1 - ((epoch + 1 - 1) / EPOCHS) ** 2
    (image_c, label_c), (image_r, label_r) = batches
    weight_CD, bias_C = method.head.weight.tolist(), method.head.bias.tolist()
    total = 0.0
    for pair in range(PAIRS):
        feature_c = method.network(image_c[pair : pair + 1])[0, 0].tolist()
        feature_r = method.network(image_r[pair : pair + 1])[0, 1].tolist()
        mixed = [2 * a * value for value in feature_c] + [2 * (1 - a) * value for value in feature_r]
        rows = zip(weight_CD, bias_C, strict=True)
        logits = [sum(w * v for w, v in zip(row, mixed, strict=True)) + bias for row, bias in rows]
        log_sum = math.log(sum(math.exp(z) for z in logits))
        total += a * (log_sum - logits[label_c[pair]]) + (1 - a) * (log_sum - logits[label_r[pair]])
    return total / PAIRS


@pytest.mark.parametrize("epoch", [0, 4, 9])
def test_the_loss_is_the_mixtures_written_out(batches, epoch):
    method = bbn()
    output = method.step(batches, at(epoch))
    assert output.loss.item() == pytest.approx(plain_loss(method, batches, epoch), rel=1e-12)
    a = 1 - (epoch / EPOCHS) ** 2
    parts = a * output.parts["conventional"] + (1 - a) * output.parts["rebalanced"]
    assert output.loss.item() == pytest.approx(parts.item(), rel=1e-12)


def test_the_first_epoch_is_the_conventional_branchs_alone(batches):
    method = bbn()
    for epoch, learning in [(0, [True, False]), (1, [True, True])]:
        method.zero_grad()
        method.step(batches, at(epoch)).loss.backward()
        moved = [any(p.grad.any() for p in branch.parameters()) for branch in method.network.embedding]
        assert moved == learning


def test_a_trained_model_reads_both_branches_as_they_are(batches):
    method, image_B = bbn(), batches[0].image_B3HW
    feature_B2D = method.network(image_B)
    expected_BC = torch.cat([feature_B2D[:, 0], feature_B2D[:, 1]], dim=1) @ method.head.weight.T + method.head.bias
    torch.testing.assert_close(method.logits(image_B).full_BC, expected_BC)
    mirrored_B2D = (feature_B2D + method.network(image_B.flip(-1))) / 2
    direction_BD = torch.cat([mirrored_B2D[:, 0], mirrored_B2D[:, 1]], dim=1)
    direction_BD = direction_BD / direction_BD.norm(dim=1, keepdim=True)
    torch.testing.assert_close(method.embed(image_B).by_kind["direct"], direction_BD)
    assert method.dim == 2 * DIM


def test_the_streams_are_independent_uniform_and_reversed_draws():
    assert tuple(bbn().sampler_specs()) == (SamplerSpec("instance"), SamplerSpec("reversed", draw=1))


def test_images_without_a_partner_are_left_out(batches):
    conventional, rebalanced = batches
    longer = TrainBatch(torch.cat([rebalanced.image_B3HW] * 2), torch.cat([rebalanced.label_B] * 2))
    method = bbn()
    expected = method.step(batches, at(5)).loss
    assert torch.equal(method.step([conventional, longer], at(5)).loss, expected)


def test_another_number_of_branches_is_refused():
    with pytest.raises(UserError, match="branches: bbn needs 2 branches, not 3"):
        bbn(branches=3)
    with pytest.raises(UserError, match="branches: Bbn needs a multi-branch network"):
        bbn(branches=1)
