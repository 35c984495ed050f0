"""Knowledge transfer from the nearest class mean, against plain loops over the images."""

import pytest
import torch

from facelt.methods.base import StepContext
from facelt.methods.fusion import FusionKt, FusionKtSettings
from tests.methods.small import CLASSES, FIRST, reloaded, run_dataset_passes, small_network, training_set


def build(**config):
    return FusionKt(FusionKtSettings(name="fusion_kt", **config), small_network(), CLASSES)


def kt(epoch, **config):
    """A method in that epoch of ten, with class means if they are due."""
    method = build(**config)
    method.begin_epoch(StepContext(epoch, 10, 0, 2), {})
    run_dataset_passes(method, training_set())
    return method.eval()


def test_kt_learns_as_a_plain_head_until_the_means_are_due():
    early, late = kt(0, memory_start=0.2), kt(2, memory_start=0.2)
    assert not early.ncm.memory.is_filled
    assert late.ncm.memory.is_filled
    data = training_set()
    output = early.step([data], FIRST)
    feature_ND = early.network(data.image_B3HW)
    losses = [
        torch.nn.functional.cross_entropy(feature_ND @ head.weight.T + head.bias, data.label_B).item()
        for head in (early.first, early.head)
    ]
    assert output.loss.item() == pytest.approx(sum(losses), rel=1e-5)
    output.after(torch.tensor(True))
    assert not early.ncm.memory.is_filled


def test_kt_is_the_formula_and_its_second_head_sends_nothing_into_the_network():
    method, data = kt(5), training_set()
    feature_ND = method.network(data.image_B3HW).detach()
    first_NC, second_NC = (
        (feature_ND @ head.weight.T + head.bias).detach().double() for head in (method.first, method.head)
    )
    mean_CD = method.ncm.memory.centroid_CD.double()
    taught, alone = [], []
    for row, z_l, z_s, label in zip(feature_ND.double(), first_NC, second_NC, data.label_B.tolist(), strict=True):
        z_d = torch.stack([row @ mean / row.norm() / mean.norm() for mean in mean_CD[:5]] + [torch.tensor(-1.0)])
        z_d = z_l.min() + (z_d - z_d.min()) / (z_d.max() - z_d.min()) * (z_l.max() - z_l.min())
        own = -z_s.log_softmax(0)[label].item()
        if z_d.argmax() == label:
            p = z_d.softmax(0)
            taught.append(0.2 * own + 0.8 * (p * (p.log() - z_s.log_softmax(0))).sum().item())
        else:
            alone.append(own)
    assert taught
    assert alone
    expected = sum(taught) / len(taught) + sum(alone) / len(alone)
    output = method.step([data], FIRST)
    assert output.parts["transfer_loss"].item() == pytest.approx(expected, rel=1e-4)
    plain = torch.nn.functional.cross_entropy(first_NC, data.label_B).item()
    assert output.loss.item() == pytest.approx(expected + plain, rel=1e-4)

    output.loss.backward()
    got = method.network.embedding.linear.weight.grad.clone()
    method.zero_grad()
    feature_ND = method.network(data.image_B3HW)
    torch.nn.functional.cross_entropy(feature_ND @ method.first.weight.T + method.first.bias, data.label_B).backward()
    assert torch.allclose(got, method.network.embedding.linear.weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("memory_step", "extra"), [("damped", 1), ("mean", 0)])
def test_kts_means_follow_the_features_and_the_second_head_answers(memory_step, extra):
    method, data = kt(5, rate=0.1, memory_step=memory_step), training_set()
    before = method.ncm.memory.centroid_CD.clone()
    method.step([data], FIRST).after(torch.tensor(True))
    with torch.no_grad():
        feature_ND = method.network(data.image_B3HW)
    unit_ND = feature_ND / feature_ND.norm(dim=1, keepdim=True)
    for label in range(5):
        seen = unit_ND[data.label_B == label]
        expected = before[label] + 0.1 * (seen - before[label]).sum(0) / (extra + len(seen))
        assert torch.allclose(method.ncm.memory.centroid_CD[label], expected, atol=1e-6)
    expected_NC = feature_ND @ method.head.weight.T + method.head.bias
    assert torch.allclose(method.logits(data.image_B3HW).local_BC, expected_NC, atol=1e-5)
    again = reloaded(method, build)
    assert torch.equal(again.logits(data.image_B3HW).local_BC, method.logits(data.image_B3HW).local_BC)
