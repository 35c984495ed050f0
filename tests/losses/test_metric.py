"""Metric losses against loops over images and pairs, and batches without pairs or negatives."""

import itertools
import math

import numpy as np
import pytest
import torch

from facelt.config.registry import METRIC_LOSSES

LABELS = {
    "mixed": [4, 0, 0, 4, 2, 4, 0, 4, 7, 2],
    "one class": [3] * 10,
    "all distinct": list(range(10)),
    "pairs": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
}


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return math.sqrt(sum((first - second) ** 2))


def lifted(features: np.ndarray, labels: list[int], margin: float) -> float:
    total, positives = 0.0, 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        if labels[i] != labels[j]:
            continue
        positives += 1
        others = sum(
            math.exp(margin - distance(features[anchor], features[k]))
            for anchor in (i, j)
            for k in range(len(labels))
            if labels[k] != labels[anchor]
        )
        if others:
            total += max(0.0, math.log(others) + distance(features[i], features[j])) ** 2
    return total / (2 * positives) if positives else 0.0


def range_loss(features: np.ndarray, labels: list[int], margin: float, inter_weight: float) -> float:
    intra, centers = 0.0, []
    for label in sorted(set(labels)):
        own = [feature for feature, image_label in zip(features, labels, strict=True) if image_label == label]
        widest = sorted((distance(a, b) for a, b in itertools.combinations(own, 2)), reverse=True)[:2]
        intra += len(widest) / sum(1 / d for d in widest) if widest else 0.0
        centers.append(sum(own) / len(own))
    distances = [distance(a, b) for a, b in itertools.combinations(centers, 2)]
    return intra + inter_weight * (max(0.0, margin - min(distances)) if distances else 0.0)


PLAIN = {
    "lifted": (lifted, [{"margin": 1.0}, {"margin": 3.0}]),
    "range": (range_loss, [{"margin": 5.0, "inter_weight": 2.0}, {"margin": 0.1, "inter_weight": 1.0}]),
}
CASES = [(name, options) for name, (_, choices) in PLAIN.items() for options in choices]


def features_of(labels: list[int], scale: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    return (scale * torch.randn(len(labels), 4, generator=random, dtype=torch.float64)).requires_grad_()


def test_every_metric_loss_has_a_plain_loop():
    assert set(PLAIN) == set(METRIC_LOSSES)


@pytest.mark.parametrize("batch", LABELS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_value_equals_the_loop_and_gradient_the_differences(name, options, batch):
    labels, features = LABELS[batch], features_of(LABELS[batch])

    def loss(features: torch.Tensor) -> torch.Tensor:
        return METRIC_LOSSES[name](features, torch.tensor(labels), **options)

    expected = PLAIN[name][0](features.detach().numpy(), labels, **options)
    assert loss(features).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.autograd.gradcheck(loss, (features,))


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_the_cases_have_a_gradient(name):
    features = features_of(LABELS["mixed"])
    METRIC_LOSSES[name](features, torch.tensor(LABELS["mixed"])).backward()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("batch", LABELS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4])
@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_nothing_is_nan_for_features_that_are_equal_or_far_apart(name, scale, batch):
    """Float32, with equal images and the labels of a class-aware sampler."""
    features = features_of(LABELS[batch], scale).detach().float()
    features[1] = features[2]
    features.requires_grad_()
    loss = METRIC_LOSSES[name](features, torch.tensor(LABELS[batch]))
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()


def test_the_order_of_a_batch_does_not_matter():
    labels, features = torch.tensor(LABELS["mixed"]), features_of(LABELS["mixed"])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    for loss in METRIC_LOSSES.values():
        torch.testing.assert_close(loss(features[order], labels[order]), loss(features, labels))
