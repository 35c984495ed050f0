"""Every registered method: a training step, saving, loading and evaluation."""

import pytest
import torch

from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.distributed.logits import GatheredFeatures
from facelt.evaluation.evaluate import closed_set_accuracy
from facelt.inference.model import load_model
from facelt.methods.base import StepContext, TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.oltr import DynamicMetaSettings
from facelt.models.network import build_network
from facelt.training.run import run
from tests.methods.minimal import stages

CLASSES, DIM = 6, 16
FIRST = StepContext(epoch=0, epochs=1, step=0, steps=2)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("resnet10", image_size=(32, 32), attention=False, embedding="linear_bn", dim=DIM)


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return TrainBatch(torch.randn(8, 3, 32, 32, generator=random), torch.tensor([0, 0, 1, 1, 2, 2, 3, 4]))


@pytest.fixture
def dynamic_meta(network):
    """dynamic_meta(**config) -> a method whose memory is filled."""

    def build(**config):
        method = METHODS["dynamic_meta"](DynamicMetaSettings(name="dynamic_meta", **config), network, CLASSES)
        method.eval()
        random = torch.Generator().manual_seed(2)
        labels = torch.arange(CLASSES).repeat(2)
        method.observe(TrainBatch(torch.randn(2 * CLASSES, 3, 32, 32, generator=random), labels))
        method.end_dataset_pass()
        return method.train()

    return build


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_is_saved_loaded_and_evaluated(name, recipe, tmp_path):
    values = recipe(tmp_path / "run")
    # Two steps of fifteen images out of the 37.
    values["optim"]["batch"] = 15
    values["stages"] = stages(name)
    folder = run(TrainConfig.model_validate(values))
    model = load_model(folder, torch.device("cpu"))
    assert isinstance(model.method, METHODS[name])
    accuracy = closed_set_accuracy(model, "validation", "paper", batch=4, workers=0)
    assert 0 <= accuracy.overall <= 1
    assert sum(accuracy.images.values()) == 5
    with torch.no_grad():
        embeddings = model.method.embed(torch.randn(3, 3, 32, 32))
    assert tuple(embeddings.by_kind) == model.method.kinds
    shape = (3, model.method.dim)
    assert all(value.shape == shape and value.isfinite().all() for value in embeddings.by_kind.values())
    assert (embeddings.reachability_B is None) == (len(model.method.kinds) == 1)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_classify_is_cross_entropy_on_its_head(network, inputs, head):
    method = METHODS["classify"](ClassifySettings(name="classify", head=head), network, CLASSES)
    method.eval()
    feature_BD, weight_CD = network(inputs.image_B3HW), method.head.weight
    if head == "linear":
        logits_BC = feature_BD @ weight_CD.T + method.head.bias
    else:
        cosine_BC = feature_BD @ weight_CD.T / feature_BD.norm(dim=1)[:, None] / weight_CD.norm(dim=1)
        logits_BC = 16 * cosine_BC
    expected = torch.nn.functional.cross_entropy(logits_BC, inputs.label_B)
    assert method.step([inputs], FIRST).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_hallucinator_starts_as_the_earlier_classifier(dynamic_meta):
    method = dynamic_meta()
    state = {"head.weight": torch.randn(CLASSES, DIM), "head.bias": torch.randn(CLASSES)}
    method.load_stage(state)
    assert torch.equal(method.head.hallucinator.weight, state["head.weight"])
    assert torch.equal(method.head.hallucinator.bias, state["head.bias"])
    assert not torch.equal(method.head.classifier.weight, state["head.weight"])


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"head.weight": torch.zeros(CLASSES, DIM)},
        {"head.weight": torch.zeros(CLASSES + 1, DIM), "head.bias": torch.zeros(CLASSES + 1)},
    ],
    ids=["nothing", "no bias", "other classes"],
)
def test_a_classifier_that_does_not_fit_is_left_alone(dynamic_meta, state):
    method = dynamic_meta()
    before = method.head.hallucinator.weight.detach().clone()
    method.load_stage(state)
    assert torch.equal(method.head.hallucinator.weight, before)
    dynamic_meta(memory=False).load_stage({"head.weight": torch.zeros(CLASSES, DIM), "head.bias": torch.zeros(CLASSES)})


@pytest.mark.parametrize(("variant", "weight"), [("released", 0.01), ("paper", 0.1)])
def test_the_loss_is_cross_entropy_and_a_weighed_centroids_loss(dynamic_meta, inputs, variant, weight):
    output = dynamic_meta(variant=variant).step([inputs], FIRST)
    parts = output.parts
    expected = parts["cross_entropy"] + weight * parts["centroids_loss"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_conventions_put_the_centroids_loss_on_other_features(dynamic_meta, inputs):
    for variant in ("released", "paper"):
        method = dynamic_meta(variant=variant)
        method.eval()
        output = method.step([inputs], FIRST)
        feature_BD = method.features(inputs.image_B3HW)
        if variant == "paper":
            feature_BD = method.head.embed(GatheredFeatures.gather(feature_BD)).vector.local_bD
        centroid_CD = method.memory.centroid_CD
        squared_BC = torch.cdist(feature_BD, centroid_CD).square()
        own_B = squared_BC[torch.arange(8), inputs.label_B]
        hinge = (10 - (squared_BC.sum() - own_B.sum()) / (8 * CLASSES)).clamp_min(0)
        expected = own_B.sum() / 16 + 0.01 * hinge
        assert output.parts["centroids_loss"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_tracked_centroids_move_after_the_step_and_released_ones_by_their_gradient(dynamic_meta, inputs):
    method = dynamic_meta(centroid_update="tracking", tracking_rate=0.5)
    method.eval()
    before = method.memory.centroid_CD.clone()
    output = method.step([inputs], FIRST)
    output.loss.backward()
    assert torch.equal(method.memory.centroid_CD, before)
    output.after(torch.tensor(True))
    feature_BD = method.features(inputs.image_B3HW).detach()
    for identity in range(CLASSES):
        seen = feature_BD[inputs.label_B == identity]
        expected = before[identity] + 0.5 * (seen - before[identity]).sum(0) / (1 + len(seen))
        assert torch.allclose(method.memory.centroid_CD[identity], expected, rtol=1e-4, atol=1e-5)
    method = dynamic_meta(centroid_update="released")
    before = method.memory.centroid_CD.detach().clone()
    output = method.step([inputs], FIRST)
    output.loss.backward()
    output.after(torch.tensor(True))
    assert torch.equal(method.memory.centroid_CD.detach(), before)
    assert method.memory.centroid_CD.grad.abs().sum() > 0


def test_lengths_of_the_three_kinds(dynamic_meta, inputs):
    method = dynamic_meta()
    method.eval()
    with torch.no_grad():
        kinds = method.embed(inputs.image_B3HW).by_kind
    assert kinds["direct"].norm(dim=1).tolist() == pytest.approx([1] * 8, abs=1e-5)
    assert kinds["meta_unit"].norm(dim=1).tolist() == pytest.approx([1] * 8, abs=1e-5)
    assert (kinds["meta"].norm(dim=1) < 1).all()
    assert torch.allclose(torch.nn.functional.normalize(kinds["meta"], dim=1), kinds["meta_unit"], atol=1e-6)


@pytest.mark.parametrize("off", ["memory", "selector", "reachability"])
def test_each_component_can_be_left_out(dynamic_meta, inputs, off):
    method = dynamic_meta(**{off: False})
    method.step([inputs], FIRST).loss.backward()
    learning = {name for name, value in method.named_parameters() if value.grad is not None and value.grad.any()}
    assert "head.classifier.weight" in learning
    assert ("head.hallucinator.weight" in learning) == (off != "memory")
    assert ("head.selector.weight" in learning) == (off == "reachability")


def test_bf16_is_the_networks_alone(dynamic_meta, inputs):
    method = dynamic_meta()
    method.eval()
    with torch.no_grad():
        exact = method.features(inputs.image_B3HW)
        method.bf16 = True
        rounded = method.features(inputs.image_B3HW)
        logits = method.logits(inputs.image_B3HW)
    assert rounded.dtype == logits.local_BC.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()
