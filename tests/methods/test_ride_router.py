"""The router of RIDE: targets, loss and predictions against plain loops over images; frozen parts."""

import math

import pytest
import torch
import torch.nn.functional as F

from facelt.config.registry import METHODS
from facelt.errors import UserError
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.multi_expert import RideRouterSettings, RideSettings, later_experts_help, num_experts_used
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network

CLASSES, DIM, EXPERTS, TOP = 6, 16, 3, 4
FIRST = StepContext(0, 1, 0, 10)


def network_of(experts=EXPERTS):
    return build_network(
        "resnet10",
        image_size=(32, 32),
        attention=False,
        embedding="linear_bn",
        dim=DIM,
        branches=BranchSpec(experts, "layer3"),
    )


@pytest.fixture
def method():
    torch.manual_seed(0)
    return METHODS["ride_router"](RideRouterSettings(name="ride_router", top=TOP), network_of(), CLASSES)


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(24, 3, 32, 32, generator=random), torch.arange(24) % CLASSES)


def test_a_later_expert_would_help_where_the_mean_so_far_is_wrong():
    cases = torch.cartesian_prod(*[torch.tensor([False, True])] * 4).T
    targets = later_experts_help(cases)
    for image in range(cases.shape[1]):
        right = cases[:, image].tolist()
        expected = [not right[j] and any(right[j + 1 :]) for j in range(3)]
        assert targets[:, image].tolist() == expected


def test_experts_are_used_until_one_suffices():
    for case in torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 2.0])] * 3):
        used = 1
        while used <= 3 and case[used - 1] > 0:
            used += 1
        assert num_experts_used(case[:, None]).tolist() == [used]


def answers_by_hand(method, image_3HW):
    """Returns an image's mean logits after each expert and the router's decision after each but the last."""
    feature_KD = method.network(image_3HW[None])[0]
    total_C, means, answers = torch.zeros(CLASSES), [], []
    for expert, head in enumerate(method.heads):
        total_C = total_C + 30 * F.normalize(head.weight) @ F.normalize(feature_KD[expert], dim=0)
        means.append(total_C / (expert + 1))
        if expert < EXPERTS - 1:
            hidden = method.router.hidden[expert](F.normalize(feature_KD[expert], dim=0)).clamp(min=0)
            top = means[-1].sort(descending=True).values[:TOP]
            answers.append(method.router.decide(torch.cat([top, hidden])).item())
    return means, answers


def test_the_loss_is_a_weighed_cross_entropy_of_the_decisions(method, inputs):
    method.train()
    losses, used = [], []
    with torch.no_grad():
        for image_3HW, label in zip(inputs.image_B3HW, inputs.label_B.tolist(), strict=True):
            means, answers = answers_by_hand(method, image_3HW)
            right = [mean_C.argmax().item() == label for mean_C in means]
            used.append(1 if answers[0] <= 0 else 2 if answers[1] <= 0 else 3)
            for decision, answer in enumerate(answers):
                helped = not right[decision] and any(right[decision + 1 :])
                share = 1 / (1 + math.exp(-answer))
                losses.append(-100 * math.log(share) if helped else -math.log(1 - share))
    output = method.step([inputs], FIRST)
    assert output.loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    assert output.parts["experts_used"].item() == pytest.approx(sum(used) / len(used))


def test_an_image_is_answered_by_the_mean_of_the_experts_it_is_shown_to(method, inputs):
    method.eval()
    # Answers of both signs at both decisions, so that all three numbers of experts occur.
    with torch.no_grad():
        first = torch.tensor([answers_by_hand(method, image)[1] for image in inputs.image_B3HW])
        method.router.decide.bias -= first.quantile(0.5)
        found_BC = method.logits(inputs.image_B3HW).full_BC
        used = []
        for image_3HW, found_C in zip(inputs.image_B3HW, found_BC, strict=True):
            means, answers = answers_by_hand(method, image_3HW)
            used.append(1 if answers[0] <= 0 else 2 if answers[1] <= 0 else 3)
            torch.testing.assert_close(found_C, means[used[-1] - 1], rtol=1e-3, atol=1e-3)
    assert len(set(used)) > 1
    assert method.diagnostics() == {"experts_per_image": pytest.approx(sum(used) / len(used))}
    assert method.diagnostics() == {}


def test_the_router_alone_moves(method, inputs):
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    parameters = [p for group in method.parameter_groups().values() for p in group if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    method.step([inputs], FIRST).loss.backward()
    optimiser.step()
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"router"}
    assert "router.decide.weight" in moved


def test_it_starts_from_rides_heads(method):
    ride = METHODS["ride"](RideSettings(name="ride"), network_of(), CLASSES)
    method.load_stage(ride.state_dict())
    assert all(torch.equal(own.weight, given.weight) for own, given in zip(method.heads, ride.heads, strict=True))
    with pytest.raises(UserError, match="the earlier stage has no head like this one"):
        method.load_stage({"head.weight": torch.zeros(CLASSES, DIM)})


def test_there_may_be_fewer_classes_than_logits_to_look_at(inputs):
    method = METHODS["ride_router"](RideRouterSettings(name="ride_router", top=30), network_of(2), CLASSES).eval()
    with torch.no_grad():
        assert method.logits(inputs.image_B3HW).full_BC.shape == (24, CLASSES)
