"""Linear and cosine classifiers against torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import Shares
from facelt.distributed.logits import ProductLogits, Rows, SharedFeature
from facelt.heads.classifiers import HEADS


def logits_of(vector: torch.Tensor, rows: Rows) -> ProductLogits:
    return ProductLogits(vector, rows, ClassRange.own(len(rows.weight_CD)), Shares((len(vector),)))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_maps_features_to_a_column_an_identity(name):
    head = HEADS[name](8, 5)
    logits = head(SharedFeature.of(torch.randn(3, 8)))
    assert logits.column_BC.shape == (3, 5)
    logits.cross_entropy(torch.tensor([0, 4, 2])).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_directions_equal_normalised_rows_with_both_gradients():
    torch.manual_seed(0)
    vector = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def product(vector, weight):
        return logits_of(vector, Rows(weight, unit=True)).column_BC

    assert torch.autograd.gradcheck(product, (vector, weight))
    torch.testing.assert_close(product(vector, weight), vector @ F.normalize(weight, dim=1).T)


def test_zero_vectors_and_rows_give_zero_not_nan():
    head = HEADS["cosine"](3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    vector = torch.zeros(1, 3, requires_grad=True)
    logits = head(SharedFeature.of(vector))
    logits.cross_entropy(torch.tensor([0])).backward()
    assert not logits.column_BC.any()
    assert torch.isfinite(vector.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_reductions_equal_those_of_the_full_matrix():
    logits = logits_of(torch.randn(3, 4), Rows(torch.randn(5, 4), torch.randn(5)))
    label = torch.tensor([1, 0, 4])
    torch.testing.assert_close(logits.cross_entropy(label), F.cross_entropy(logits.column_BC, label))
    assert torch.equal(logits.argmax(), logits.column_BC.argmax(1))
    assert torch.equal(logits.maximum(), logits.column_BC.max(1).values)


def test_columns_must_fit_their_range():
    with pytest.raises(ValueError, match=r"shape \[1, 5\], expected \[1, 4\]"):
        ProductLogits(torch.zeros(1, 2), Rows(torch.zeros(5, 2)), ClassRange.own(4), Shares((1,)))
    with pytest.raises(ValueError, match="not a range"):
        ClassRange(3, 2, 4)
