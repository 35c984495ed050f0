"""Angular margins against the authors' results, a plain loop, and cosines near 1 and -1."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.heads.classifiers import CombinedMargin, MarginHead


class GivenCosines(MarginHead):
    """A head whose cosines are given as the feature."""

    def __init__(self, classes: int, margin: CombinedMargin) -> None:
        super().__init__(1, classes, 64.0, margin)

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        rows = ClassWeights(torch.eye(len(self.classes), dtype=feature.global_BD.dtype))
        return ClassifierLogits(self.scale * feature.global_BD, rows, self.classes, feature.batch_split)


@pytest.mark.parametrize(
    ("name", "margin"),
    [("arcface_s64_m0.5", CombinedMargin(1, 0.5, 0)), ("cosface_s64_m0.4", CombinedMargin(1, 0, 0.4))],
)
def test_equals_the_authors_loss(golden, name, margin):
    reference = np.load(golden / "losses.npz")
    cosine = torch.from_numpy(reference["cosine"]).requires_grad_()
    label = torch.from_numpy(reference["labels"])
    loss = (
        GivenCosines(cosine.shape[1], margin)
        .training_logits(GatheredFeatures.gather(cosine), label)
        .cross_entropy(label)
    )
    loss.backward()
    assert abs(loss.item() - reference[f"{name}/loss"]) <= 1e-5 * reference[f"{name}/loss"]
    if f"{name}/grad" in reference:
        expected = reference[f"{name}/grad"]
        assert np.abs(cosine.grad.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_only_the_target_class_has_a_margin():
    torch.manual_seed(0)
    head = MarginHead(4, 5, 8.0, CombinedMargin(1.1, 0.3, 0.1)).double()
    feature, label = torch.randn(3, 4, dtype=torch.float64), torch.tensor([4, 0, 4])
    logits = head.training_logits(GatheredFeatures.gather(feature), label)
    expected = 8 * F.normalize(feature, dim=1) @ F.normalize(head.weight, dim=1).T
    torch.testing.assert_close(logits.local_BC, expected)
    for row, own in enumerate(label.tolist()):
        cosine = expected[row, own].item() / 8
        widened = 1.1 * math.acos(cosine) + 0.3
        beyond = cosine - (1 + math.cos((math.pi - 0.3) / 1.1))
        expected[row, own] = 8 * ((math.cos(widened) if widened <= math.pi else beyond) - 0.1)
    torch.testing.assert_close(logits.cross_entropy(label), F.cross_entropy(expected, label))


def test_gradients_of_the_margin_equal_finite_differences():
    torch.manual_seed(0)
    head = MarginHead(4, 5, 8.0, CombinedMargin(1.1, 0.3, 0.1)).double()
    feature, label = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 4])
    weight = head.weight.detach().clone().requires_grad_()

    def loss(feature, weight):
        head.__dict__["weight"] = weight
        return head.training_logits(GatheredFeatures.gather(feature), label).cross_entropy(label)

    assert torch.autograd.gradcheck(loss, (feature, weight))


@pytest.mark.parametrize("factors", [(1, 0.5, 0), (1.1, 0.3, 0.1), (1.35, 0, 0)])
def test_the_target_never_rises_as_the_angle_grows_and_its_slope_is_finite(factors):
    margin = CombinedMargin(*factors)
    cosine = torch.linspace(1, -1, 2001, dtype=torch.float64, requires_grad=True)
    target = margin(cosine)
    assert (target.diff() <= 1e-9).all()
    target.sum().backward()
    assert torch.isfinite(cosine.grad).all()


def test_a_rank_without_the_target_class_applies_no_margin():
    head = GivenCosines(4, CombinedMargin(1, 0.5, 0))
    head.classes = ClassRange(4, 8, 8)
    cosine, label = torch.rand(2, 4, requires_grad=True), torch.tensor([0, 3])
    feature = GatheredFeatures.gather(cosine, BatchSplit((2,)))
    result = [logits.cross_entropy(label) for logits in (head.training_logits(feature, label), head(feature))]
    torch.testing.assert_close(*result, rtol=0, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, cosine)[0] for loss in result), rtol=0, atol=0)
