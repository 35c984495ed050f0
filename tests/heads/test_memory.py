"""The identity memory: class means, nearest centroid, readout and the tracking rule, against plain loops."""

from functools import partial

import pytest
import torch

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit, rank
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.heads.memory import IdentityMemory
from tests.distributed.ranks import run_ranks

of = GatheredFeatures.gather


def test_class_means_in_pieces_equal_the_means_at_once():
    torch.manual_seed(0)
    feature, label = torch.randn(20, 3), torch.randint(0, 4, (20,))
    memory = IdentityMemory(6, 3)
    for start in range(0, 20, 7):
        memory.accumulate(of(feature[start : start + 7]), label[start : start + 7])
    memory.finish()
    for identity in range(4):
        torch.testing.assert_close(memory.centroid_CD[identity].data, feature[label == identity].mean(0))
    assert not memory.centroid_CD[4:].any()
    assert memory.filled_C.tolist() == [True] * 4 + [False] * 2


def test_an_identity_without_an_image_is_never_the_nearest():
    memory = IdentityMemory(2, 2)
    memory.accumulate(of(torch.tensor([[5.0, 5.0]])), torch.tensor([1]))
    memory.finish()
    distance, identity = memory.nearest(of(torch.tensor([[0.1, 0.0]])))
    assert identity.tolist() == [1]
    torch.testing.assert_close(distance, torch.tensor([(4.9**2 + 25) ** 0.5]))


def test_nearest_survives_cancellation_and_is_clamped():
    memory = IdentityMemory(3, 2, min_distance=1e-3)
    memory.accumulate(of(torch.tensor([[1e4, 0.0], [0.0, 1e4], [-1e4, 0.0]])), torch.arange(3))
    memory.finish()
    feature = torch.tensor([[1e4, 0.0], [0.25, 1e4]], requires_grad=True)
    distance, identity = memory.nearest(of(feature))
    assert identity.tolist() == [0, 1]
    torch.testing.assert_close(distance, torch.tensor([1e-3, 0.25]))
    distance.sum().backward()
    torch.testing.assert_close(feature.grad, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


CLOSE = torch.tensor([[30.0, 0.005], [30.0, 0.0], [-30.0, 0.0]])


def nearest_of_close_centroids() -> tuple[torch.Tensor, torch.Tensor]:
    """With several ranks the two close centroids are on the first two of them."""
    memory = IdentityMemory(len(CLOSE), 2, min_distance=1e-6)
    memory.accumulate(of(CLOSE if rank() == 0 else CLOSE[:0]), torch.arange(3) if rank() == 0 else torch.arange(0))
    memory.finish()
    feature = torch.tensor([[30.0, 0.0], [30.0, 0.004], [30.0, 0.001], [-30.0, 1.0]])
    return memory.nearest(of(feature))


def test_nearest_distinguishes_centroids_closer_than_the_products_rounding():
    distance, identity = nearest_of_close_centroids()
    assert identity.tolist() == [1, 0, 1, 2]
    torch.testing.assert_close(distance, torch.tensor([1e-6, 0.001, 0.001, 1.0]))


def test_ranks_distinguish_close_centroids(tmp_path):
    for distance, identity in run_ranks(nearest_of_close_centroids, 3, tmp_path):
        assert identity.tolist() == [1, 0, 1, 2]
        torch.testing.assert_close(distance, torch.tensor([1e-6, 0.001, 0.001, 1.0]))


def test_nearest_equals_all_distances_in_float64():
    """5,000 centroids in several blocks of columns, each with a near duplicate."""
    generator = torch.Generator().manual_seed(0)
    centroid = 3 * torch.randn(2500, 16, generator=generator)
    centroid = torch.cat([centroid, centroid + 1e-3 * torch.randn(2500, 16, generator=generator)])
    memory = IdentityMemory(5000, 16)
    memory.centroid_CD.data.copy_(centroid)
    memory.filled_C.copy_(torch.arange(5000) % 7 != 0)
    feature = centroid[::50] + 0.01 * torch.randn(100, 16, generator=generator)
    distances = torch.cdist(feature.double(), centroid.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected, identity = distances[:, memory.filled_C].min(dim=1)
    distance, result = memory.nearest(of(feature))
    assert torch.equal(result, memory.filled_C.nonzero()[:, 0][identity])
    torch.testing.assert_close(distance.double(), expected, rtol=1e-5, atol=0)


def test_a_label_without_an_identity_is_an_error():
    memory = IdentityMemory(3, 2, update_rule="tracking")
    update = partial(memory.update, is_finite=torch.tensor(True))
    for use in (memory.accumulate, update, memory.mean_target_distance):
        with pytest.raises(IndexError, match="labels of 3 classes are 0 to 2"):
            use(of(torch.ones(2, 2)), torch.tensor([0, 3]))


def test_tracking_moves_each_identity_by_its_own_count():
    memory = IdentityMemory(4, 2, update_rule="tracking", rate=0.5)
    start = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    memory.accumulate(of(start), torch.arange(4))
    memory.finish()
    feature, label = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1, 3])
    memory.update(of(feature), label, torch.tensor(True))
    expected = start.clone()
    expected[1] += 0.5 * ((feature[0] - start[1]) + (feature[1] - start[1])) / 3
    expected[3] += 0.5 * (feature[2] - start[3]) / 2
    torch.testing.assert_close(memory.centroid_CD, expected)
    assert not list(memory.parameters())


def test_tracking_converges_where_decay_would_shrink():
    memory = IdentityMemory(1, 2, update_rule="tracking")
    feature = torch.tensor([[3.0, 4.0]])
    for _ in range(60):
        memory.update(of(feature), torch.tensor([0]), torch.tensor(True))
    torch.testing.assert_close(memory.centroid_CD, feature)


def test_released_leaves_the_update_to_the_optimiser():
    memory = IdentityMemory(2, 2)
    memory.update(of(torch.ones(1, 2)), torch.tensor([0]), torch.tensor(True))
    assert not memory.centroid_CD.any()
    assert [name for name, _ in memory.named_parameters()] == ["centroid_CD"]


def logits_of(rows: ClassWeights, vector: torch.Tensor) -> ClassifierLogits:
    return ClassifierLogits(vector, rows, ClassRange.local(len(rows.weight_CD)), BatchSplit((len(vector),)))


def test_read_is_the_softmax_weighted_mean_and_detached():
    torch.manual_seed(0)
    memory = IdentityMemory(5, 3).double()
    memory.accumulate(of(torch.randn(5, 3)), torch.arange(5))
    memory.finish()
    factors = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((4, 2), (5, 2), (5,))]

    def read(vector, weight, bias):
        return memory.read(logits_of(ClassWeights(weight, bias), vector))

    vector, weight, bias = factors
    expected = torch.softmax(vector @ weight.T + bias, 1) @ memory.centroid_CD
    torch.testing.assert_close(read(*factors), expected.detach())
    assert torch.autograd.gradcheck(read, factors)
    read(*factors).sum().backward()
    assert memory.centroid_CD.grad is None


def test_readout_of_normalized_weights_is_refused():
    with pytest.raises(ValueError, match="does not support normalized weights"):
        IdentityMemory(3, 2).read(logits_of(ClassWeights(torch.ones(3, 2), normalize=True), torch.ones(1, 2)))


def test_finish_without_a_pass_is_an_error():
    with pytest.raises(RuntimeError, match="before any add"):
        IdentityMemory(1, 1).finish()
