"""The discriminative centroids loss against the authors' code, autograd, and its limits."""

import numpy as np
import pytest
import torch

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.logits import GatheredFeatures
from facelt.losses.centroids import discriminative_centroids_loss


def loss_of(feature, centroid, label, **options):
    return discriminative_centroids_loss(
        GatheredFeatures.gather(feature), centroid, label, ClassRange.local(len(centroid)), **options
    )


def close(actual: torch.Tensor, expected: np.ndarray) -> bool:
    return np.abs(actual.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_equals_the_released_code(golden):
    reference = np.load(golden / "oltr_disc_centroids.npz")
    feature = torch.from_numpy(reference["x"]).requires_grad_()
    centroid = torch.from_numpy(reference["centroids"]).requires_grad_()
    loss = loss_of(feature, centroid, torch.from_numpy(reference["y"]))
    (0.01 * loss).backward()
    assert min(abs(loss.item() - reference["loss"]), abs(0.01 * loss.item() - reference["loss"])) < 1e-5
    assert close(feature.grad, reference["grad_x"])
    assert close(centroid.grad, reference["grad_centroids"])


def plain(feature, centroid, label, margin, form):
    """The same loss from the full distance matrix, for autograd."""
    squared = torch.cdist(feature, centroid).square()
    own = torch.nn.functional.one_hot(label, len(centroid)).bool()
    attract = squared[own].sum() / (2 * len(feature))
    mean = squared.masked_fill(own, 0).mean(dim=None if form == "batch_mean" else 1)
    return attract, 0.01 * (margin - mean).clamp_min(0).mean()


@pytest.mark.parametrize("form", ["batch_mean", "per_image"])
@pytest.mark.parametrize("margin", [0.5, 6.0, 1e4], ids=["hinge idle", "hinge active for some", "hinge active"])
@pytest.mark.parametrize("weigh", [False, True])
def test_gradients_equal_autograd_of_the_distance_matrix(margin, form, weigh):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    centroid = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, 0, 1, 3, 3, 3])
    loss = loss_of(feature, centroid, label, margin=margin, margin_form=form, scale_centroid_gradient=weigh)
    attract, repel = plain(feature, centroid, label, margin, form)
    exactly = {"rtol": 1e-12, "atol": 1e-14}  # float64 throughout
    torch.testing.assert_close(loss, attract + repel, **exactly)

    actual = torch.autograd.grad(0.25 * loss, (feature, centroid))
    expected = torch.autograd.grad(0.25 * (attract + repel), feature, retain_graph=True)[0]
    torch.testing.assert_close(actual[0], expected, **exactly)
    count = torch.bincount(label, minlength=4)[:, None]
    attract_part = torch.autograd.grad(attract, centroid, retain_graph=True)[0] / (1 + count)
    repel_part = torch.autograd.grad(0.25 * repel, centroid)[0]
    torch.testing.assert_close(actual[1], (0.25 if weigh else 1.0) * attract_part + repel_part, **exactly)


def test_a_tracked_memory_gets_no_gradient():
    feature = torch.ones(2, 3, requires_grad=True)
    loss = loss_of(feature, torch.zeros(4, 3), torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(feature.grad).all()


@pytest.mark.parametrize("label", [-1, -100, 4])
def test_a_label_without_a_class_is_an_error(label):
    with pytest.raises(IndexError, match="labels of 4 classes are 0 to 3"):
        loss_of(torch.ones(2, 3), torch.zeros(4, 3), torch.tensor([0, label]))
