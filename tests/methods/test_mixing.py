"""Mixup, manifold mixup and Remix: the draws, and each method against a plain computation.

B images, C classes, D feature.
"""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from facelt.config.registry import METHODS, MIXINGS
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import Classify, ClassifySettings
from facelt.models.network import build_network

CLASSES = 4
COUNTS = torch.tensor([90, 30, 29, 3])
AT = StepContext(epoch=3, epochs=10, step=1, steps=5)


def classify(**config) -> Classify:
    torch.manual_seed(0)
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none")
    method = METHODS["classify"](ClassifySettings(name="classify", **config), network, CLASSES, COUNTS)
    return method.eval()


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(8, 3, 32, 32, generator=random), torch.arange(8) % CLASSES)


def plain_blend(method: Classify, inputs: TrainBatch) -> tuple[float, list[int]]:
    """The share and the partners of the step."""
    blend = method.mixing.draw(inputs.label_B, AT, AT.generator("cpu"))
    return blend.lam, blend.partner_b.tolist()


def logits_of(method: Classify, feature_BD: torch.Tensor) -> np.ndarray:
    return (feature_BD @ method.head.weight.T + method.head.bias).detach().double().numpy()


def plain_cross_entropy(logits_C: np.ndarray, label: int) -> float:
    return float(np.log(np.exp(logits_C - logits_C.max()).sum()) + logits_C.max() - logits_C[label])


@pytest.mark.parametrize("name", MIXINGS)
def test_the_loss_is_that_of_blends_with_both_labels(name, inputs):
    method = classify(mix={"name": name})
    lam, partners = plain_blend(method, inputs)
    assert 0 < lam < 1
    assert sorted(partners) == list(range(8))
    terms = []
    for image, partner in enumerate(partners):
        first, second = inputs.image_B3HW[image], inputs.image_B3HW[partner]
        if name == "manifold":
            first, second = method.features(first[None]), method.features(second[None])
            logits_C = logits_of(method, lam * first + (1 - lam) * second)[0]
        else:
            logits_C = logits_of(method, method.features((lam * first + (1 - lam) * second)[None]))[0]
        label, partner_label = inputs.label_B[image].item(), inputs.label_B[partner].item()
        share = plain_remix_share(lam, COUNTS[label].item(), COUNTS[partner_label].item()) if name == "remix" else lam
        terms.append(
            share * plain_cross_entropy(logits_C, label) + (1 - share) * plain_cross_entropy(logits_C, partner_label)
        )
    loss = method.step([inputs], AT).loss
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-4)
    loss.backward()
    assert method.network.backbone.conv1.weight.grad.abs().sum() > 0


def plain_remix_share(lam: float, count: int, partner_count: int, kappa: float = 3, tau: float = 0.5) -> float:
    """Returns the first label's share by equation 10 of the paper."""
    if count / partner_count >= kappa and lam < tau:
        return 0.0
    if count / partner_count <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.49, 0.5, 0.51, 0.8, 1.0])
def test_remix_gives_the_rare_class_all_where_it_has_the_most(lam):
    mixing = MIXINGS["remix"](COUNTS, alpha=1.0, kappa=3.0, tau=0.5)
    label_B, partner_label_B = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)
    first_B, second_B = mixing.labels(lam, label_B, partner_label_B)
    share_B4 = lam * torch.eye(4)[first_B] + (1 - lam) * torch.eye(4)[second_B]
    for pair, (label, partner) in enumerate(zip(label_B.tolist(), partner_label_B.tolist(), strict=True)):
        share = plain_remix_share(lam, COUNTS[label].item(), COUNTS[partner].item())
        expected = share * torch.eye(4)[label] + (1 - share) * torch.eye(4)[partner]
        assert torch.allclose(share_B4[pair], expected)


def test_another_loss_and_class_weights_are_mixed_as_they_are(inputs):
    options = {"loss": {"name": "balanced_softmax"}, "weights": {"name": "cost_sensitive"}}
    method = classify(mix={"name": "input"}, **options)
    lam, partners = plain_blend(method, inputs)
    blended_B3HW = lam * inputs.image_B3HW + (1 - lam) * inputs.image_B3HW[partners]
    logits_BC = logits_of(method, method.features(blended_B3HW)) + np.log(COUNTS.numpy())
    weight_C = 3 / COUNTS.numpy()

    def plain(label_B: torch.Tensor) -> float:
        terms = [plain_cross_entropy(row, label) for row, label in zip(logits_BC, label_B.tolist(), strict=True)]
        return float((weight_C[label_B] * terms).sum() / weight_C[label_B].sum())

    expected = lam * plain(inputs.label_B) + (1 - lam) * plain(inputs.label_B[partners])
    assert method.step([inputs], AT).loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_margin_is_taken_off_each_of_the_two(inputs):
    margin = {"name": "combined", "additive": 0.2, "cosine": 0.1}
    method = classify(mix={"name": "input"}, head="margin", scale=8, margin=margin)
    lam, partners = plain_blend(method, inputs)
    feature_BD = method.features(lam * inputs.image_B3HW + (1 - lam) * inputs.image_B3HW[partners])
    cosine_BC = torch.nn.functional.normalize(feature_BD) @ torch.nn.functional.normalize(method.head.weight).T

    def plain(label_B: torch.Tensor) -> torch.Tensor:
        harder_BC = torch.where(torch.eye(CLASSES)[label_B] > 0, (cosine_BC.acos() + 0.2).cos() - 0.1, cosine_BC)
        return torch.nn.functional.cross_entropy(8 * harder_BC, label_B)

    expected = lam * plain(inputs.label_B) + (1 - lam) * plain(inputs.label_B[partners])
    assert method.step([inputs], AT).loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_of_beta(alpha):
    """Mean and variance of 1500 steps lie within five standard errors."""
    mixing = MIXINGS["input"](None, alpha=alpha)
    steps = [StepContext(epoch, 15, step, 100) for epoch in range(15) for step in range(100)]
    shares = np.array([mixing.draw(torch.zeros(2).long(), step, step.generator("cpu")).lam for step in steps])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * (variance / len(shares)) ** 0.5
    squared = (shares - 0.5) ** 2
    assert abs(squared.mean() - variance) < 5 * squared.std() / len(shares) ** 0.5


def test_a_step_draws_the_same_again_and_leaves_torchs_state_alone(inputs):
    method = classify(mix={"name": "input"})
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = method.step([inputs], AT).loss
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == 7
    torch.rand(5)
    assert torch.equal(method.step([inputs], AT).loss, first)
    assert not torch.equal(method.step([inputs], StepContext(3, 10, 2, 5)).loss, first)
    torch.manual_seed(8)
    assert not torch.equal(method.step([inputs], AT).loss, first)


def test_mixing_is_of_training_alone(inputs):
    plain, mixed = classify(), classify(mix={"name": "remix"})
    assert plain.state_dict().keys() == mixed.state_dict().keys()
    assert torch.equal(plain.logits(inputs.image_B3HW).local_BC, mixed.logits(inputs.image_B3HW).local_BC)
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none")
    METHODS["classify"](ClassifySettings(name="classify", mix={"name": "remix"}), network, CLASSES).eval().logits(
        inputs.image_B3HW
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mix": {"name": "cutmix"}}, "is not allowed; allowed: input, manifold, remix"),
        ({"mix": {"name": "input", "kappa": 3}}, "unknown key"),
        ({"mix": {"name": "input", "alpha": 0}}, "greater than 0"),
        (
            {"mix": {"name": "input"}, "metric_loss": {"name": "lifted"}},
            "mix: a blended image has two classes",
        ),
        ({"mix": {"name": "input"}, "head": "cosine", "sample_rate": 0.5}, "mix: a blended image has two classes"),
    ],
)
def test_what_cannot_be_mixed_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        ClassifySettings(name="classify", **config)
