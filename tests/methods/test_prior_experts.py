"""BalPoE and SADE: a step against plain loops in float64, mixing, and the networks they accept."""

import math

import pytest
import torch
from torch.nn import functional as F

from facelt.config.registry import METHODS
from facelt.errors import UserError
from facelt.methods.base import StepContext, TrainBatch
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network

CLASSES, EXPERTS, BATCH = 6, 3, 8
# Unsorted, with a tie, and a class without images.
COUNTS = [40, 90, 400, 0, 10, 10]
PRIOR = [n / 550 for n in (40, 90, 400, 10, 10, 10)]
# By images, fewest first, ties by label: 3, 4, 5, 0, 1, 2; the first of them has the prior of the last, and so on.
REVERSED = [PRIOR[5], PRIOR[4], PRIOR[3], PRIOR[2], PRIOR[1], PRIOR[0]]
LABELS = [0, 0, 1, 1, 2, 2, 4, 5]
CONTEXT = StepContext(3, 20, 2, 10)


def build(name, experts=EXPERTS, counts=COUNTS, **config):
    torch.manual_seed(experts)
    network = build_network(
        "resnet10",
        image_size=(32, 32),
        attention=False,
        embedding="linear_bn",
        dim=16,
        branches=BranchSpec(experts, "layer3"),
    )
    settings = METHODS.settings(name)(name=name, **config)
    counts_C = None if counts is None else torch.tensor(counts)
    # In evaluation mode, so that the same images have the same logits again.
    return METHODS[name](settings, network, CLASSES, counts_C).double().eval()


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(BATCH, 3, 32, 32, generator=random).double(), torch.tensor(LABELS))


def logits_of(method, image):
    """The cosines of each expert, times 30."""
    feature_BKD = method.network(image)
    return [
        30 * F.normalize(feature_BKD[:, k]) @ F.normalize(method.heads[k].weight).T for k in range(len(method.heads))
    ]


def plain_loss(logits_BC, labels, offsets):
    """-log softmax of the target, image by image, with an offset of each class on the logits."""
    total = 0.0
    for logit_C, label in zip(logits_BC.tolist(), labels, strict=True):
        shifted = [logit + offset for logit, offset in zip(logit_C, offsets, strict=True)]
        total += math.log(sum(math.exp(value) for value in shifted)) - shifted[label]
    return total / len(labels)


def balpoe_offsets(taus):
    return [[tau * math.log(prior) for prior in PRIOR] for tau in taus]


def sade_offsets(inverse):
    balanced = [math.log(prior) for prior in PRIOR]
    last = [math.log(p) - inverse * math.log(r) for p, r in zip(PRIOR, REVERSED, strict=True)]
    return [[0.0] * CLASSES, balanced, last]


@pytest.mark.parametrize(
    ("name", "config", "offsets", "share"),
    [
        ("balpoe", {"mix": None}, balpoe_offsets((0, 1, 2)), 1 / 3),
        ("balpoe", {"mix": None, "taus": (0.5, 1, 1.5)}, balpoe_offsets((0.5, 1, 1.5)), 1 / 3),
        ("sade", {}, sade_offsets(2.0), 1),
        ("sade", {"inverse": 1.0}, sade_offsets(1.0), 1),
    ],
)
def test_a_step_is_the_plain_loss_of_every_expert(name, config, offsets, share, inputs):
    method = build(name, **config)
    with torch.no_grad():
        experts, output = logits_of(method, inputs.image_B3HW), method.step([inputs], CONTEXT)
        predicted = method.logits(inputs.image_B3HW).full_BC
    losses = [plain_loss(logits_BC, LABELS, offset) for logits_BC, offset in zip(experts, offsets, strict=True)]
    assert [part.item() for part in output.parts.values()] == pytest.approx(losses, rel=1e-6)
    assert output.loss.item() == pytest.approx(share * sum(losses), rel=1e-6)
    # Predictions have no prior.
    torch.testing.assert_close(predicted, sum(experts) / EXPERTS)


def test_mixup_blends_images_and_the_losses_of_both_labels(inputs):
    method = build("balpoe")
    with torch.no_grad():
        output = method.step([inputs], CONTEXT)
        blend = method.mixing.draw(inputs.label_B, CONTEXT, CONTEXT.generator("cpu"))
        image = blend.lam * inputs.image_B3HW + (1 - blend.lam) * inputs.image_B3HW[blend.partner_b]
        experts = logits_of(method, image)
    assert method.mixing.alpha == 0.4
    assert 0 < blend.lam < 1
    partners = [LABELS[row] for row in blend.partner_b]
    expected = 0.0
    for logits_BC, offset in zip(experts, balpoe_offsets((0, 1, 2)), strict=True):
        own, other = (plain_loss(logits_BC, labels, offset) for labels in (LABELS, partners))
        expected += (blend.lam * own + (1 - blend.lam) * other) / 3
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["balpoe", "sade"])
def test_the_experts_get_gradients_and_the_saved_model_has_no_prior(name, inputs):
    method = build(name)
    method.step([inputs], CONTEXT).loss.backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in method.heads)
    again = build(name, counts=None)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.logits(inputs.image_B3HW).full_BC, method.logits(inputs.image_B3HW).full_BC)


@pytest.mark.parametrize(
    ("name", "message"),
    [("balpoe", r"branches: 4 does not fit taus: \[0.0, 1.0, 2.0\]"), ("sade", "branches: 4 experts; sade has three")],
)
def test_another_number_of_branches_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        build(name, experts=4)


@pytest.mark.parametrize("name", ["balpoe", "sade"])
def test_a_network_without_branches_is_refused(name):
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="linear_bn", dim=16)
    with pytest.raises(UserError, match="needs a multi-branch network"):
        METHODS[name](METHODS.settings(name)(name=name), network, CLASSES, torch.tensor(COUNTS))
