"""Heads under autocast compute in float32: values and gradients are those without autocast."""

import pytest
import torch

from facelt.distributed.logits import GatheredFeatures
from facelt.heads.classifiers import CosineHead, LinearHead, MarginHead, WeightScalingHead
from facelt.heads.dynamic_meta import DynamicMetaHead
from facelt.heads.margins import AdaFace, Circle, MvSoftmax
from facelt.heads.memory import IdentityMemory
from facelt.heads.ncm import NcmHead
from facelt.losses.centroids import discriminative_centroids_loss

CLASSES, DIM, BATCH = 7, 16, 5
LABELS = torch.tensor([0, 6, 3, 3, 1])


def fill(memory: IdentityMemory) -> None:
    memory.centroid_CD.data.copy_(torch.randn(CLASSES, DIM))
    memory.filled_C.fill_(True)


def classifier_loss(head, feature: GatheredFeatures) -> torch.Tensor:
    logits = head.training_logits(feature, LABELS, 0)
    return logits.cross_entropy(LABELS) + head(feature).full_BC.square().mean()


def memory_loss(head: DynamicMetaHead, feature: GatheredFeatures) -> torch.Tensor:
    logits, embedding = head(feature)
    centroids = discriminative_centroids_loss(feature, head.memory.centroid_CD, LABELS, head.memory.classes)
    return logits.cross_entropy(LABELS) + 0.1 * centroids + embedding.meta_bD.sum()


def dynamic_meta() -> DynamicMetaHead:
    memory = IdentityMemory(CLASSES, DIM)
    fill(memory)
    return DynamicMetaHead(memory, DIM)


def nearest_class_mean(distance: str) -> NcmHead:
    head = NcmHead(DIM, CLASSES, distance=distance)
    fill(head.memory)
    return head


CASES = {
    "linear": (lambda: LinearHead(DIM, CLASSES), classifier_loss),
    "cosine": (lambda: CosineHead(DIM, CLASSES, learn_scale=True), classifier_loss),
    "sampled cosine": (lambda: CosineHead(DIM, CLASSES, sample_rate=0.8), classifier_loss),
    "arcface": (lambda: MarginHead(DIM, CLASSES, 8.0), classifier_loss),
    "adaface": (lambda: MarginHead(DIM, CLASSES, 8.0, AdaFace()), classifier_loss),
    "mv_softmax": (lambda: MarginHead(DIM, CLASSES, 8.0, MvSoftmax()), classifier_loss),
    "circle": (lambda: MarginHead(DIM, CLASSES, 8.0, Circle()), classifier_loss),
    "learned weight scaling": (lambda: WeightScalingHead(DIM, CLASSES), classifier_loss),
    "euclidean ncm": (lambda: nearest_class_mean("euclidean"), classifier_loss),
    "cosine ncm": (lambda: nearest_class_mean("cosine"), classifier_loss),
    "dynamic meta-embedding": (dynamic_meta, memory_loss),
}


def gradients(head, loss_of, feature: torch.Tensor, autocast: bool, backward_inside: bool) -> list[torch.Tensor]:
    """The loss and the gradients of the features and of every parameter."""
    head.zero_grad()
    feature = feature.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = loss_of(head, GatheredFeatures.gather(feature))
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    parameters = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    return [loss.detach(), feature.grad, *(grad.to_dense().clone() for grad in parameters)]


@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_neither_values_nor_gradients(name, dtype, backward_inside):
    torch.manual_seed(0)
    build, loss_of = CASES[name]
    head, feature = build(), torch.randn(BATCH, DIM).to(dtype)
    results = [gradients(head, loss_of, feature, autocast, backward_inside) for autocast in (True, False)]
    assert len(results[0]) > 1
    for with_autocast, without in zip(*results, strict=True):
        if backward_inside:  # the selector's torch.nn.functional.linear then differentiates in bfloat16
            torch.testing.assert_close(with_autocast, without, rtol=0.02, atol=0.02)
        else:
            assert torch.equal(with_autocast, without)
    assert results[0][0].dtype == torch.float32
    assert results[0][1].dtype == dtype
