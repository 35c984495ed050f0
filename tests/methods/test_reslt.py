"""ResLT: its step against the loss computed branch by branch, the classes of each branch, and inference.

B images, K branches, C classes, D feature of a branch.
"""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from facelt.config.registry import METHODS
from facelt.errors import UserError
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.reslt import ResltSettings
from tests.methods.small_branches import branched_network

# Most images first, of equally many the lower label: 1, 2, 0, 5, 4, 3.
COUNTS = torch.tensor([30, 90, 90, 1, 4, 9])
BEHIND = [{0, 1, 2, 3, 4, 5}, {0, 3, 4, 5}, {3, 4}]
CLASSES, DIM, IMAGES = len(COUNTS), 4, 9


def reslt(branches: int = 3, counts_C: torch.Tensor | None = COUNTS, **options) -> nn.Module:
    config = ResltSettings(name="reslt", **{"starts": [2, 4], **options})
    method = METHODS["reslt"](config, branched_network(branches, DIM), CLASSES, counts_C).double().eval()
    nn.init.normal_(method.head.bias)
    return method


@pytest.fixture
def inputs() -> TrainBatch:
    random = torch.Generator().manual_seed(1)
    image_B = torch.randn(IMAGES, 3, 2, 2, generator=random, dtype=torch.float64)
    return TrainBatch(image_B, torch.tensor([0, 1, 1, 2, 3, 3, 4, 5, 5]))


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


@pytest.mark.parametrize("alpha", [0.995, 0.0, 1.0])
def test_the_loss_is_branches_on_their_classes_and_their_sum(inputs, alpha):
    method = reslt(alpha=alpha)
    feature_BKD = method.network(inputs.image_B3HW)
    logits_BKC = (feature_BKD @ method.head.weight.T + method.head.bias).tolist()
    own, members, fused = 0.0, 0, 0.0
    for logits_KC, label in zip(logits_BKC, inputs.label_B.tolist(), strict=True):
        for classes, logits in zip(BEHIND, logits_KC, strict=True):
            if label in classes:
                own, members = own + cross_entropy(logits, label), members + 1
        fused += cross_entropy([sum(column) for column in zip(*logits_KC, strict=True)], label)
    assert members == 9 + 6 + 3
    expected = alpha * own / members + (1 - alpha) * fused / IMAGES
    assert method.step([inputs], StepContext(0, 1, 0, 1)).loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_branches_learn_from_their_own_classes(inputs):
    method = reslt(alpha=1.0)
    many = inputs.label_B < 3
    method.step([TrainBatch(inputs.image_B3HW[many], inputs.label_B[many])], StepContext(0, 1, 0, 1)).loss.backward()
    moved = [any(p.grad.any() for p in branch.parameters()) for branch in method.network.embedding]
    # Of the classes 0, 1 and 2 the second branch answers for 0 alone, the third for none.
    assert moved == [True, True, False]


def test_the_answer_is_the_sum_of_the_branches(inputs):
    trained = reslt()
    method = reslt(counts_C=None)
    method.load_state_dict(trained.state_dict())
    feature_BKD = method.network(inputs.image_B3HW)
    expected_BC = sum(feature_BKD[:, k] @ method.head.weight.T + method.head.bias for k in range(3))
    torch.testing.assert_close(method.logits(inputs.image_B3HW).full_BC, expected_BC)
    sum_BD = ((feature_BKD + method.network(inputs.image_B3HW.flip(-1))) / 2).sum(dim=1)
    found_BD = method.embed(inputs.image_B3HW).by_kind["direct"]
    torch.testing.assert_close(found_BD, sum_BD / sum_BD.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("starts", [[4], [1, 2, 4]])
def test_a_branch_too_many_or_too_few_is_refused(starts):
    with pytest.raises(UserError, match="branches: 3 does not fit starts: "):
        reslt(starts=starts)


def test_a_start_behind_the_last_class_is_refused():
    with pytest.raises(UserError, match="starts: 6 is not a rank of 6 classes"):
        reslt(starts=[2, 6])


@pytest.mark.parametrize("starts", [[], [4, 2], [2, 2], [0, 2]])
def test_starts_ascend_from_one(starts):
    with pytest.raises(ValidationError, match="starts"):
        ResltSettings(name="reslt", starts=starts)
