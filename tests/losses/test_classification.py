"""Classification losses against the authors' results, plain loops in float64, and limits."""

import math

import numpy as np
import pytest
import torch

from facelt.config.registry import CLASS_WEIGHTS, LOSSES

OPTIONS = {"seql": {"threshold": 0.2, "gamma": 0.5}}
COUNTS = torch.tensor([40, 9, 3, 1])


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def plain(name: str, row: np.ndarray, own: int, counts: list[int], out: np.ndarray) -> float:
    """The loss of one image in plain Python; `out` marks the classes excluded at random."""
    p = softmax(row)[own]
    if name == "softmax":
        return -math.log(p)
    if name == "focal":
        return -((1 - p) ** 1.5) * math.log(p)
    if name == "sigmoid_focal":
        right = [sigmoid(z) if c == own else 1 - sigmoid(z) for c, z in enumerate(row)]
        return sum(-((1 - q) ** 1.5) * math.log(q) for q in right)
    if name == "ldam":
        shifted = row.copy()
        shifted[own] -= 10 * 0.3 * min(counts) ** 0.25 / counts[own] ** 0.25
        return -math.log(softmax(shifted)[own])
    if name == "seql":
        return -math.log(
            math.exp(row[own]) / sum(math.exp(z) for z, is_excluded in zip(row, out, strict=True) if not is_excluded)
        )
    return -math.log(counts[own] * math.exp(row[own]) / sum(n * math.exp(z) for n, z in zip(counts, row, strict=True)))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_the_weighted_mean_of_its_equation(name, weighted):
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 4, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 4, (50,), generator=random)
    options = {"focal": {"gamma": 1.5}, "sigmoid_focal": {"gamma": 1.5}, "ldam": {"max_margin": 0.3, "scale": 10.0}}
    loss = LOSSES[name](COUNTS, **{**options, **OPTIONS}.get(name, {})).double()
    weights = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    result = loss(logits, labels, weights if weighted else None, torch.Generator().manual_seed(5))
    # The same draw: the rare classes have 9, 3 and 1 of the 53 images, less than a fifth.
    drawn = torch.rand(50, 4, generator=torch.Generator().manual_seed(5)).numpy() < 0.5
    out = drawn & np.array([False, True, True, True]) & (labels.numpy()[:, None] != np.arange(4))
    terms = [plain(name, logits[b].numpy(), labels[b].item(), COUNTS.tolist(), out[b]) for b in range(50)]
    heavy = weights[labels].numpy() if weighted else np.ones(50)
    total = 50 if name == "sigmoid_focal" else heavy.sum()
    assert result.item() == pytest.approx(np.dot(terms, heavy) / total, rel=1e-6)


def test_class_balanced_focal_divides_by_the_images_as_the_class_balanced_loss_code():
    """CIFAR-100-LT, imbalance 100, beta 0.9: dividing by the weights would give a loss about 1.2 times as large."""
    counts = torch.tensor([int(500 * 0.01 ** (c / 99)) for c in range(100)])
    weights = (1 - 0.9) / (1 - 0.9 ** counts.double())
    weights *= 100 / weights.sum()
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(100).repeat_interleave(counts)
    logits = torch.randn(len(labels), 100, generator=random, dtype=torch.float64)
    is_own = torch.nn.functional.one_hot(labels, 100).bool()
    q = torch.where(is_own, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (weights[labels][:, None] * (1 - q) ** 2 * -q.log()).sum() / len(labels)
    loss = LOSSES["sigmoid_focal"](counts, gamma=2.0)(logits, labels, CLASS_WEIGHTS["class_balanced"](counts, beta=0.9))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert len(labels) / weights[labels].sum().item() == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(
    ("golden_name", "input_name", "name", "options"),
    [
        ("focal_gamma1", "logits", "focal", {"gamma": 1.0}),
        ("focal_gamma2", "logits", "focal", {"gamma": 2.0}),
        ("ldam", "cosine", "ldam", {"max_margin": 0.5, "scale": 30.0}),
        ("balanced_softmax", "logits", "balanced_softmax", {}),
        ("softmax_equalization_gamma1_lambda0.01", "logits", "seql", {"gamma": 1.0, "threshold": 0.01}),
    ],
)
def test_equals_the_authors_loss(reference, equals, golden_name, input_name, name, options):
    labels, loss = torch.from_numpy(reference["labels"]), LOSSES[name](counts_of(reference), **options)
    scale = 30.0 if input_name == "cosine" else 1.0
    equals(golden_name, input_name, lambda value: loss(scale * value, labels))


@pytest.mark.parametrize(
    ("golden_name", "input_name", "name", "weights", "options"),
    [
        ("class_balanced_ce", "logits", "softmax", "class_balanced", {"beta": 0.9999}),
        ("cost_sensitive_gamma0.5", "logits", "softmax", "cost_sensitive", {"gamma": 0.5}),
        ("ldam_drw", "cosine", "ldam", "class_balanced", {"beta": 0.9999}),
    ],
)
def test_equals_the_authors_weighted_loss(reference, equals, golden_name, input_name, name, weights, options):
    labels, loss = torch.from_numpy(reference["labels"]), LOSSES[name](counts_of(reference))
    weight_C = CLASS_WEIGHTS[weights](counts_of(reference), **options)
    scale = 30.0 if input_name == "cosine" else 1.0
    equals(golden_name, input_name, lambda value: loss(scale * value, labels, weight_C))


def counts_of(reference) -> torch.Tensor:
    return torch.from_numpy(reference["class_counts"])


def test_class_balanced_weights_equal_the_authors(reference):
    expected = reference["class_balanced_weight_beta0.9999"]
    result = CLASS_WEIGHTS["class_balanced"](counts_of(reference), beta=0.9999).numpy()
    assert np.abs(result - expected).max() <= 1e-5 * expected.max()
    assert result.sum() == pytest.approx(len(expected), rel=1e-6)


def test_weights_at_their_ends():
    assert torch.allclose(CLASS_WEIGHTS["class_balanced"](COUNTS, beta=0.0), torch.ones(4))
    assert CLASS_WEIGHTS["cost_sensitive"](COUNTS).tolist() == pytest.approx([1 / 40, 1 / 9, 1 / 3, 1])


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 4, generator=random, dtype=torch.float64, requires_grad=True)
    loss, labels = LOSSES[name](COUNTS, **OPTIONS.get(name, {})).double(), torch.tensor([0, 3, 1, 1, 2])
    weights = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda value: loss(value, labels, weights, torch.Generator().manual_seed(0)), (logits,)
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_nothing_is_nan_where_an_image_is_certainly_right_or_wrong(name, gamma):
    """Logits at which probabilities round to 0 and 1, a class without images, and a batch of one class."""
    counts = torch.tensor([40, 9, 0, 1])
    options = {"focal": {"gamma": gamma}, "sigmoid_focal": {"gamma": gamma}, **OPTIONS}.get(name, {})
    logits = torch.tensor([[500.0, 0, 0, -500], [-500, 0, 500, 0], [0, 0, 0, 0]], requires_grad=True)
    for labels in (torch.tensor([0, 0, 0]), torch.tensor([2, 3, 1])):
        loss = LOSSES[name](counts, **options)(logits, labels, CLASS_WEIGHTS["class_balanced"](counts))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", CLASS_WEIGHTS)
def test_a_class_without_images_has_the_weight_of_the_rarest(name):
    weight = CLASS_WEIGHTS[name](torch.tensor([40, 9, 0, 1]))
    assert weight.isfinite().all()
    assert weight[2] == weight[3] == weight.max()


def test_seql_excludes_classes_independently_per_image():
    loss = LOSSES["seql"](torch.tensor([1000, 1, 1]), threshold=0.1, gamma=0.25)
    labels = torch.zeros(20000, dtype=torch.int64)
    terms = loss.per_image(torch.zeros(20000, 3), labels, torch.Generator().manual_seed(0))
    # Three, two or one class left in the softmax: both stay with 0.75^2, one of them with 2 * 0.25 * 0.75.
    left = torch.bincount(terms.exp().round().long(), minlength=4)[1:]
    assert (left / 20000).tolist() == pytest.approx([0.0625, 0.375, 0.5625], abs=0.015)


@pytest.mark.parametrize("name", LOSSES)
def test_tensors_of_the_counts_are_not_saved(name):
    assert not LOSSES[name](COUNTS, **OPTIONS.get(name, {})).state_dict()
