"""Training on a sample of the classes: the sample, its loss, and the weights it updates."""

import math

import pytest
import torch
import torch.nn.functional as F

from facelt.distributed.class_shards import ClassRange, ClassSample
from facelt.distributed.comm import rank, world_size
from facelt.distributed.logits import GatheredFeatures
from facelt.heads.classifiers import CosineHead, MarginHead
from facelt.heads.margins import CombinedMargin
from facelt.training.optim import RowSGD
from tests.distributed.ranks import run_ranks

CLASSES, DIM, BATCH, RATE = 23, 4, 9, 0.4
MARGIN = CombinedMargin(additive=0.3)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    return feature, torch.randint(CLASSES, (BATCH,), generator=generator)


def plain_loss(weight: torch.Tensor, feature: torch.Tensor, label: torch.Tensor, drawn: list[int], scale, margin):
    """Cross-entropy over the sampled classes only."""
    column = F.normalize(feature, dim=1) @ F.normalize(weight[drawn], dim=1).T
    target_N = torch.tensor([drawn.index(own) for own in label.tolist()])
    column = column.scatter(1, target_N[:, None], margin(column.gather(1, target_N[:, None])))
    return F.cross_entropy(scale * column, target_N)


@pytest.mark.parametrize("classes", [ClassRange(2, 5, 9), ClassRange(0, 9, 9), ClassRange(9, 9, 9)])
def test_rows_and_classes_of_labels_are_those_of_the_range(classes):
    label, row = torch.tensor([4, 8, 0, 2, 4]), torch.arange(1.0, 1 + 2 * len(classes)).view(-1, 2)
    own = [label - classes.first if classes.first <= label < classes.stop else None for label in label.tolist()]
    assert classes.rows_of(row, label).tolist() == [[0, 0] if index is None else row[index].tolist() for index in own]
    assert classes.occurring(label).tolist() == [index in own for index in range(len(classes))]


def test_the_batchs_classes_are_sampled_and_others_up_to_the_rate():
    torch.manual_seed(0)
    label = torch.tensor([40, 40, 12, 99, 3])
    for step in range(20):
        sample = ClassSample.draw(ClassRange(10, 60, 100), label, 0.13, step)
        assert len(sample) == 7
        assert sample.position_K.diff().min() > 0
        assert sample.position_K[0] >= 0
        assert sample.position_K[-1] < 50
        assert {2, 30} <= set(sample.position_K.tolist())
        assert sample.contains(label).tolist() == [True, True, True, False, False]
        assert sample.position_K[sample.local_index(label)[:3]].tolist() == [30, 30, 2]


def test_all_classes_of_a_batch_are_sampled_beyond_the_rate():
    sample = ClassSample.draw(ClassRange.of_rank(30, 0, 1), torch.arange(0, 30, 2), 0.1, 0)
    assert sample.position_K.tolist() == list(range(0, 30, 2))


def test_other_classes_are_sampled_uniformly():
    torch.manual_seed(0)
    steps = 2000
    hits = torch.zeros(20)
    for step in range(steps):
        hits[ClassSample.draw(ClassRange.of_rank(20, 0, 1), torch.tensor([7]), 0.3, step).position_K] += 1
    assert hits[7] == steps
    others = torch.cat([hits[:7], hits[8:]])
    # Five of nineteen each step: five standard deviations of a binomial count.
    expected = steps * 5 / 19
    assert (others - expected).abs().max() < 5 * math.sqrt(expected * 14 / 19)


def test_samples_depend_on_seed_step_and_range_and_advance_no_generator():
    def drawn(seed: int, step: int, first: int = 0) -> list[int]:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        sample = ClassSample.draw(ClassRange(first, first + 500, 1000), torch.tensor([0]), 0.1, step)
        assert torch.equal(torch.get_rng_state(), before)
        return sample.position_K.tolist()

    assert drawn(1, 5) == drawn(1, 5)
    assert len({tuple(drawn(*arguments)) for arguments in ((1, 5), (1, 6), (2, 5), (1, 5, 500))}) == 4


def test_a_restored_random_state_gives_the_same_sample():
    torch.manual_seed(5)
    torch.rand(3)
    state, label = torch.get_rng_state(), torch.tensor([0])
    expected = ClassSample.draw(ClassRange.of_rank(100, 0, 1), label, 0.2, 9).position_K
    torch.manual_seed(6)
    torch.set_rng_state(state)
    assert torch.equal(ClassSample.draw(ClassRange.of_rank(100, 0, 1), label, 0.2, 9).position_K, expected)


@pytest.mark.parametrize("head", ["cosine", "margin"])
def test_loss_and_gradients_equal_a_plain_computation_on_the_sample(head):
    torch.manual_seed(0)
    if head == "cosine":
        model, margin = CosineHead(DIM, CLASSES, 8.0, sample_rate=RATE).double(), CombinedMargin()
    else:
        model, margin = MarginHead(DIM, CLASSES, 8.0, MARGIN, sample_rate=RATE).double(), MARGIN
    feature, label = batch()
    feature.requires_grad_()
    logits = model.training_logits(GatheredFeatures.gather(feature), label, 4)
    drawn = logits.classes.position_K.tolist()
    assert len(drawn) == math.ceil(RATE * CLASSES) < CLASSES
    loss, expected = logits.cross_entropy(label), plain_loss(model.weight, feature, label, drawn, 8.0, margin)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, (feature, model.weight))
    assert gradients[1].is_sparse
    assert gradients[1].coalesce().indices()[0].tolist() == drawn
    for left, right in zip(gradients, torch.autograd.grad(expected, (feature, model.weight)), strict=True):
        torch.testing.assert_close(left.to_dense(), right)
    assert model(GatheredFeatures.gather(feature)).local_BC.shape == (BATCH, CLASSES)


@pytest.mark.parametrize("head", [CosineHead, MarginHead])
def test_a_rate_of_one_is_the_full_head(head):
    torch.manual_seed(0)
    full = head(DIM, CLASSES)
    every = head(DIM, CLASSES, sample_rate=1.0)
    almost = head(DIM, CLASSES, sample_rate=1 - 1e-9)
    for copy in (every, almost):
        copy.load_state_dict(full.state_dict())
    feature, label = batch()
    losses = []
    for model in (full, every, almost):
        losses.append(model.training_logits(GatheredFeatures.gather(feature.float()), label).cross_entropy(label))
        losses[-1].backward()
    assert losses[0] == losses[1]
    torch.testing.assert_close(losses[2], losses[0])
    assert torch.equal(every.weight.grad, full.weight.grad)
    torch.testing.assert_close(almost.weight.grad.to_dense(), full.weight.grad)


def test_only_sampled_rows_are_updated_and_others_keep_every_bit():
    torch.manual_seed(0)
    head = CosineHead(DIM, CLASSES, sample_rate=RATE).double()
    feature, label = batch()
    weight, buffer = head.weight.detach().clone(), torch.zeros_like(head.weight)
    optimiser = RowSGD(head.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        # Two backward passes per step with different samples: their sparse gradients add up.
        drawn = set()
        plain = weight.clone().requires_grad_()
        for half in (2 * step, 2 * step + 1):
            logits = head.training_logits(GatheredFeatures.gather(feature), label, half)
            logits.cross_entropy(label).backward()
            positions = logits.classes.position_K.tolist()
            plain_loss(plain, feature, label, positions, 16.0, CombinedMargin()).backward()
            drawn |= set(positions)
        rows = sorted(drawn)
        assert len(rows) < CLASSES
        optimiser.step()
        optimiser.zero_grad()
        buffer[rows] = 0.9 * buffer[rows] + plain.grad[rows] + 0.01 * weight[rows]
        weight[rows] -= 0.3 * buffer[rows]
        torch.testing.assert_close(head.weight.detach(), weight)
        others = sorted(set(range(CLASSES)) - drawn)
        assert torch.equal(head.weight.detach()[others], weight[others])
        weight = head.weight.detach().clone()
    torch.testing.assert_close(optimiser.state[head.weight]["momentum_buffer"], buffer)


def test_dense_and_full_sparse_gradients_update_as_torchs_sgd():
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    ends = []
    for kind in (torch.optim.SGD, RowSGD, "sparse"):
        parameter = torch.nn.Parameter(start.clone())
        optimiser = (RowSGD if kind == "sparse" else kind)([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
        for step in range(3):
            gradient = torch.full_like(start, step + 1.0)
            parameter.grad = gradient.to_sparse(1) if kind == "sparse" else gradient
            optimiser.step()
        ends.append(parameter.detach())
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


def sampled_losses() -> dict[int, dict]:
    return {classes: sampled_loss(classes) for classes in (CLASSES, 4)}


def sampled_loss(classes: int) -> dict:
    """One rank's part: the loss, its sample as class numbers, and its gradients."""
    torch.manual_seed(0)
    head = MarginHead(DIM, classes, 8.0, MARGIN, sample_rate=RATE).double()
    feature, label = batch()
    label %= classes
    own = slice(BATCH * rank() // world_size(), BATCH * (rank() + 1) // world_size())
    feature = feature[own].clone().requires_grad_()
    logits = head.training_logits(GatheredFeatures.gather(feature), label[own], 4)
    loss = logits.cross_entropy(label[own])
    loss.backward()
    rows = head.weight.grad.coalesce()
    return {
        "loss": loss.detach(),
        "drawn": (logits.classes.position_K + head.classes.first).tolist(),
        "feature": feature.grad,
        "rows": dict(zip((rows.indices()[0] + head.classes.first).tolist(), rows.values(), strict=True)),
    }


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def together(request, tmp_path_factory) -> list[dict[int, dict]]:
    return run_ranks(sampled_losses, request.param, tmp_path_factory.mktemp("ranks"))


# With four classes the last of three ranks has none.
@pytest.mark.parametrize("classes", [CLASSES, 4])
def test_ranks_train_on_the_union_of_their_samples(classes, together):
    results = [result[classes] for result in together]
    drawn = [identity for result in results for identity in result["drawn"]]
    torch.manual_seed(0)
    weight = MarginHead(DIM, classes).double().weight
    feature, label = batch()
    label %= classes
    feature.requires_grad_()
    expected = plain_loss(weight, feature, label, drawn, 8.0, MARGIN)
    expected.backward()
    assert set(label.tolist()) <= set(drawn)
    for rank_index, result in enumerate(results):
        size = len(ClassRange.of_rank(classes, rank_index, len(results)))
        assert math.ceil(RATE * size) <= len(result["drawn"]) <= size
        torch.testing.assert_close(result["loss"], expected.detach())
        for row, gradient in result["rows"].items():
            torch.testing.assert_close(gradient, weight.grad[row])
    torch.testing.assert_close(torch.cat([result["feature"] for result in results]), feature.grad)
