"""Independent experts against single networks trained alone on the same batches."""

import copy

import pytest
import torch
import torch.nn.functional as F

from facelt.config.registry import METHODS
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.multi_expert import IndependentSettings
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network

CLASSES, DIM, EXPERTS = 6, 16, 3
COUNTS = torch.tensor([400, 90, 40, 10, 4, 1])
LATE = StepContext(8, 10, 0, 10)
LDAM = {"name": "ldam"}
DRW = {"name": "class_balanced", "start": 0.8}


def build(experts=EXPERTS, **config):
    torch.manual_seed(0)
    network = build_network(
        "resnet10",
        image_size=(32, 32),
        attention=False,
        embedding="fc_relu",
        dim=DIM,
        branches=BranchSpec(experts, "none"),
    )
    return METHODS["independent"](IndependentSettings(name="independent", **config), network, CLASSES, COUNTS)


def batch(seed, size=6):
    random = torch.Generator().manual_seed(seed)
    return TrainBatch(torch.randn(size, 3, 32, 32, generator=random), torch.randint(CLASSES, (size,), generator=random))


def alone(method, expert):
    """A single network with that expert's weights."""
    network = build_network("resnet10", image_size=(32, 32), attention=False, embedding="fc_relu", dim=DIM)
    network.backbone.load_state_dict(method.network.backbone.branches[expert].state_dict())
    network.embedding.load_state_dict(method.network.embedding[expert].state_dict())
    config = ClassifySettings(name="classify", head="cosine", scale=30, loss=LDAM, weights=DRW)
    single = METHODS["classify"](config, network, CLASSES, COUNTS)
    single.head.load_state_dict(method.heads[expert].state_dict())
    return single


def test_every_expert_moves_as_it_would_alone():
    method, batches = build().train(), [batch(seed) for seed in range(EXPERTS)]
    singles = [alone(method, expert).train() for expert in range(EXPERTS)]
    output = method.step(batches, LATE)
    output.loss.backward()
    losses = []
    for expert, single in enumerate(singles):
        loss = single.step([batches[expert]], LATE).loss
        loss.backward()
        losses.append(loss.item())
        assert output.parts[f"expert_{expert + 1}"].item() == pytest.approx(loss.item(), rel=1e-4)
        pairs = [
            (method.network.backbone.branches[expert], single.network.backbone),
            (method.network.embedding[expert], single.network.embedding),
            (method.heads[expert], single.head),
        ]
        for ours, theirs in pairs:
            for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                if own.requires_grad:
                    scale = other.grad.abs().max().item()
                    torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
            for own, other in zip(ours.buffers(), theirs.buffers(), strict=True):
                torch.testing.assert_close(own, other)
    assert output.loss.item() == pytest.approx(sum(losses), rel=1e-4)


def test_the_experts_streams_are_independent_draws():
    streams = build(sampler="class_balanced").sampler_specs()
    assert [stream.draw for stream in streams] == [0, 1, 2]
    assert {(stream.sampler, stream.shots) for stream in streams} == {("class_balanced", None)}


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_test_average(average):
    method = build(average=average).eval()
    image = batch(0).image_B3HW
    with torch.no_grad():
        feature_BKD = method.network(image)
        logits = [30 * F.normalize(feature_BKD[:, k]) @ F.normalize(method.heads[k].weight).T for k in range(EXPERTS)]
        result = method.logits(image)
    if average == "logits":
        torch.testing.assert_close(result.full_BC, sum(logits) / EXPERTS, rtol=1e-4, atol=1e-4)
    else:
        mean_BC = sum(z.softmax(1) for z in logits) / EXPERTS
        torch.testing.assert_close(result.full_BC.softmax(1), mean_BC, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(result.full_BC.exp(), mean_BC, rtol=1e-3, atol=1e-6)
        assert result.argmax().tolist() == mean_BC.argmax(1).tolist()


def test_a_batch_that_lost_an_image_shortens_the_others():
    method = build(experts=2).eval()
    short = method.step([batch(0), batch(1, size=5)], LATE).loss.item()
    cut = TrainBatch(*(value[:5] for value in batch(0)))
    assert short == pytest.approx(method.step([cut, batch(1, size=5)], LATE).loss.item(), rel=1e-5)


def test_any_loss_and_head():
    method = build(head="linear", loss={"name": "balanced_softmax"}, weights=None).eval()
    batches = [batch(seed) for seed in range(EXPERTS)]
    twin = copy.deepcopy(method)
    with torch.no_grad():
        expected = 0.0
        for expert, (image, label_B) in enumerate(batches):
            feature_BD = twin.network(image)[:, expert]
            logits_BC = feature_BD @ twin.heads[expert].weight.T + twin.heads[expert].bias
            expected += F.cross_entropy(logits_BC + COUNTS.log(), label_B).item()
        loss = method.step(batches, LATE).loss.item()
    assert loss == pytest.approx(expected, rel=1e-4)
