"""Class-sharded logits in blocks of columns equal those of the full matrix, for any block size."""

import pytest
import torch
import torch.nn.functional as F

from facelt.distributed import logits as logits_module
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.distributed.trained_logits import LogitTransform
from facelt.heads.memory import IdentityMemory

CLASSES, DIM, BATCH = 11, 4, 6


@pytest.fixture(params=[1, 4, 11, 64])
def size(request, monkeypatch) -> int:
    monkeypatch.setitem(logits_module.BLOCK_COLUMNS, "cpu", request.param)
    return request.param


def randoms(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]


def harder(logit_B: torch.Tensor) -> torch.Tensor:
    """A margin that depends on the image."""
    return logit_B.sin() - 0.1 * torch.arange(len(logit_B))


def mistaken(logit_BN: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
    return torch.where(logit_BN > target_B1, 1.5 * logit_BN.square(), logit_BN)


TRANSFORMS = {"plain": None, "margin": LogitTransform(harder), "negatives": LogitTransform(harder, mistaken)}


@pytest.mark.parametrize("normalize", [False, True], ids=["rows", "directions"])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("has_prior", [False, True], ids=["no prior", "prior"])
def test_cross_entropy_and_its_gradients_equal_those_of_the_full_matrix(size, normalize, name, has_prior):
    vector, weight = randoms((BATCH, DIM), (CLASSES, DIM))
    label, transform = torch.tensor([10, 0, 3, 3, 4, 7]), TRANSFORMS[name]
    prior = torch.linspace(-1, 2, CLASSES, dtype=torch.float64) if has_prior else None
    weights, split = ClassWeights(weight, normalize=normalize), BatchSplit((BATCH,))
    logits = ClassifierLogits(vector, weights, ClassRange.local(CLASSES), split, transform)
    column = vector @ (F.normalize(weight, dim=1) if normalize else weight).T
    if transform is not None:
        target = harder(column.gather(1, label[:, None])[:, 0])[:, None]
        others = column if transform.negatives is None else mistaken(column, target.detach())
        assert name != "negatives" or 0 < (column != others).sum() < column.numel()
        column = others.scatter(1, label[:, None], target)
    expected = F.cross_entropy(column if prior is None else column + prior, label)
    result = logits.cross_entropy(label, prior)
    torch.testing.assert_close(result, expected)
    for left, right in zip(*(torch.autograd.grad(loss, (vector, weight)) for loss in (result, expected)), strict=True):
        torch.testing.assert_close(left, right)


def test_only_required_gradients_are_computed(size):
    vector, weight = randoms((BATCH, DIM), (CLASSES, DIM))
    label = torch.zeros(BATCH, dtype=torch.int64)
    for left, right in ((vector, weight.detach()), (vector.detach(), weight)):
        logits = ClassifierLogits(
            left, ClassWeights(right, normalize=True), ClassRange.local(CLASSES), BatchSplit((BATCH,))
        )
        logits.cross_entropy(label).backward()
    assert vector.grad.any()
    assert weight.grad.any()


def test_backward_can_be_called_twice(size):
    """Saved tensors are not overwritten."""
    vector, weight, bias, value = randoms((BATCH, DIM), (CLASSES, DIM), (CLASSES,), (CLASSES, DIM))
    logits = ClassifierLogits(vector, ClassWeights(weight, bias), ClassRange.local(CLASSES), BatchSplit((BATCH,)))
    label = torch.arange(BATCH)
    loss = logits.cross_entropy(label) + logits.softmax_readout(value.detach()).square().sum() + logits.local_BC.sum()
    factors = (vector, weight, bias)
    for left, right in zip(*(torch.autograd.grad(loss, factors, retain_graph=True) for _ in range(2)), strict=True):
        assert torch.equal(left, right)


def test_the_nearest_is_the_first_of_equals(size):
    memory = IdentityMemory(CLASSES, 2)
    centroid = torch.tensor([[9.0, 9.0]] * 3 + [[1.0, 0.0], [0.0, 1.0]] * 4)
    memory.accumulate(GatheredFeatures.gather(centroid), torch.arange(CLASSES))
    memory.finish()
    _, identity = memory.nearest(GatheredFeatures.gather(torch.tensor([[1.0, 0.1], [0.1, 1.0], [9.0, 8.0]])))
    assert identity.tolist() == [3, 4, 0]
