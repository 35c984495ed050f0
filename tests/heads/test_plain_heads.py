"""Linear and cosine classifiers against torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from facelt.heads import HEADS, cosine_logits
from facelt.parallel import ClassRange, ShardedLogits, SharedFeature, Shares


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_maps_features_to_a_column_an_identity(name):
    head = HEADS[name](8, 5)
    logits = head(SharedFeature.of(torch.randn(3, 8)))
    assert logits.column_BC.shape == (3, 5)
    logits.cross_entropy(torch.tensor([0, 4, 2])).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_cosine_equals_normalised_operands_with_both_gradients():
    torch.manual_seed(0)
    vector = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_logits, (vector, weight))
    expected = F.normalize(vector, dim=1) @ F.normalize(weight, dim=1).T
    torch.testing.assert_close(cosine_logits(vector, weight), expected)


def test_zero_vectors_and_rows_give_zero_not_nan():
    vector = torch.zeros(1, 3, requires_grad=True)
    weight = torch.tensor([[0.0, 0, 0], [1, 0, 0]], requires_grad=True)
    logits = cosine_logits(vector, weight)
    logits.sum().backward()
    assert not logits.any()
    assert torch.isfinite(vector.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_reductions_equal_those_of_the_full_matrix():
    column = torch.randn(3, 5)
    logits = ShardedLogits(column, ClassRange.own(5), Shares((3,)))
    label = torch.tensor([1, 0, 4])
    torch.testing.assert_close(logits.cross_entropy(label), F.cross_entropy(column, label))
    assert torch.equal(logits.argmax(), column.argmax(1))
    assert torch.equal(logits.maximum(), column.max(1).values)


def test_columns_must_fit_their_range():
    with pytest.raises(ValueError, match=r"shape \[1, 5\], expected \[1, 4\]"):
        ShardedLogits(torch.zeros(1, 5), ClassRange.own(4), Shares((1,)))
    with pytest.raises(ValueError, match="not a range"):
        ClassRange(3, 2, 4)
