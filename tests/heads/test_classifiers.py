"""Linear and cosine classifiers against torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from facelt.config.registry import HEADS
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures


def logits_of(vector: torch.Tensor, rows: ClassWeights) -> ClassifierLogits:
    return ClassifierLogits(vector, rows, ClassRange.local(len(rows.weight_CD)), BatchSplit((len(vector),)))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_maps_features_to_a_logit_per_class(name):
    head = HEADS[name](8, 5)
    logits = head(GatheredFeatures.gather(torch.randn(3, 8)))
    assert logits.local_BC.shape == (3, 5)
    logits.cross_entropy(torch.tensor([0, 4, 2])).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_normalised_weights_and_their_gradients():
    torch.manual_seed(0)
    vector = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def product(vector, weight):
        return logits_of(vector, ClassWeights(weight, normalize=True)).local_BC

    assert torch.autograd.gradcheck(product, (vector, weight))
    torch.testing.assert_close(product(vector, weight), vector @ F.normalize(weight, dim=1).T)


def test_zero_features_and_weights_give_zero_not_nan():
    head = HEADS["cosine"](3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    vector = torch.zeros(1, 3, requires_grad=True)
    logits = head(GatheredFeatures.gather(vector))
    logits.cross_entropy(torch.tensor([0])).backward()
    assert not logits.local_BC.any()
    assert torch.isfinite(vector.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_reductions_equal_those_of_the_full_matrix():
    logits = logits_of(torch.randn(3, 4), ClassWeights(torch.randn(5, 4), torch.randn(5)))
    label = torch.tensor([1, 0, 4])
    torch.testing.assert_close(logits.cross_entropy(label), F.cross_entropy(logits.local_BC, label))
    assert torch.equal(logits.argmax(), logits.local_BC.argmax(1))
    assert torch.equal(logits.maximum(), logits.local_BC.max(1).values)


def test_logits_must_fit_their_class_range():
    with pytest.raises(ValueError, match=r"shape \[1, 5\], expected \[1, 4\]"):
        ClassifierLogits(torch.zeros(1, 2), ClassWeights(torch.zeros(5, 2)), ClassRange.local(4), BatchSplit((1,)))
    with pytest.raises(ValueError, match="not a range"):
        ClassRange(3, 2, 4)


@pytest.mark.parametrize("options", [{}, {"sample_rate": 0.5}], ids=["all classes", "sampled"])
@pytest.mark.parametrize("label", [-1, -100, 5])
def test_a_label_without_a_class_is_an_error_as_in_torch(label, options):
    feature, labels = GatheredFeatures.gather(torch.randn(2, 3)), torch.tensor([0, label])
    with pytest.raises(IndexError, match="labels of 5 classes are 0 to 4"):
        HEADS["cosine"](3, 5, **options).training_logits(feature, labels, 0).cross_entropy(labels)
    if label != -100:
        with pytest.raises(IndexError):
            F.cross_entropy(torch.zeros(2, 5), labels)
