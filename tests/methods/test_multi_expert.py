"""Multi-expert methods: mean logits, embedding, and the networks they accept."""

import pytest
import torch
import torch.nn.functional as F

from facelt.config.registry import METHODS
from facelt.errors import UserError
from facelt.methods.base import TrainBatch
from facelt.methods.classify import ClassifySettings
from facelt.methods.multi_expert import IndependentSettings, MultiExpertMethod, RideSettings, truncate_to_shortest
from facelt.models.branched import BranchSpec
from facelt.models.network import build_network

CLASSES, DIM, EXPERTS = 6, 16, 3
COUNTS = torch.tensor([40, 30, 20, 10, 5, 1])


class InferenceOnly(MultiExpertMethod):
    """Multi-expert method for inference only."""

    step = None


def build_experts(head, **options):
    torch.manual_seed(0)
    branches = BranchSpec(EXPERTS, "layer3")
    network = build_network(
        "resnet10", image_size=(32, 32), attention=False, embedding="linear_bn", dim=DIM, branches=branches
    )
    method = InferenceOnly(network, CLASSES, "instance", head, **options).eval()
    if head == "linear":
        for classifier in method.heads:
            torch.nn.init.normal_(classifier.bias)
    return method


def images(batch=5):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("head", "options"), [("linear", {}), ("cosine", {"scale": 30.0})])
def test_the_answer_is_the_mean_of_the_experts(head, options):
    method = build_experts(head, **options)
    with torch.no_grad():
        experts, together = method.predict_all(images())
        feature_BKD = method.network(images())
    plain = []
    for expert, classifier in enumerate(method.heads):
        feature_BD = feature_BKD[:, expert]
        if head == "cosine":
            plain.append(30 * F.normalize(feature_BD) @ F.normalize(classifier.weight).T)
        else:
            plain.append(feature_BD @ classifier.weight.T + classifier.bias)
        torch.testing.assert_close(experts[expert].full_BC, plain[expert], rtol=1e-4, atol=1e-5)
    mean_BC = sum(plain) / EXPERTS
    torch.testing.assert_close(together.full_BC, mean_BC, rtol=1e-4, atol=1e-5)
    assert method.logits(images()).argmax().tolist() == mean_BC.argmax(dim=1).tolist()
    label_B = torch.tensor([0, 1, 2, 3, 4])
    expected = F.cross_entropy(mean_BC, label_B)
    torch.testing.assert_close(together.cross_entropy(label_B), expected, rtol=1e-4, atol=1e-5)


def test_products_of_embeddings_are_the_mean_of_the_experts_cosines():
    method = build_experts("linear")
    with torch.no_grad():
        found_BD = method.embed(images()).by_kind["direct"]
        mirrored_BKD = (method.network(images()) + method.network(images().flip(-1))) / 2
    assert found_BD.shape == (5, method.dim) == (5, EXPERTS * DIM)
    unit_BKD = mirrored_BKD / mirrored_BKD.norm(dim=2, keepdim=True)
    expected_BB = torch.stack([unit_BKD[:, k] @ unit_BKD[:, k].T for k in range(EXPERTS)]).mean(dim=0)
    torch.testing.assert_close(found_BD @ found_BD.T, expected_BB, rtol=1e-4, atol=1e-5)


def test_batches_are_cut_to_the_shortest():
    long, short = (TrainBatch(images(size), torch.arange(size)) for size in (5, 3))
    cut = truncate_to_shortest([long, short])
    assert [len(batch.image_B3HW) for batch in cut] == [3, 3]
    assert all(batch.label_B.tolist() == [0, 1, 2] for batch in cut)


def test_a_network_of_one_and_methods_of_one_are_refused():
    plain = build_network("resnet10", image_size=(32, 32), attention=False, embedding="none")
    with pytest.raises(UserError, match="branches: Ride needs a multi-branch network"):
        METHODS["ride"](RideSettings(name="ride"), plain, CLASSES)
    with pytest.raises(UserError, match="branches: Classify trains a single-branch network"):
        METHODS["classify"](ClassifySettings(name="classify"), build_experts("linear").network, CLASSES)


@pytest.mark.parametrize(
    ("config", "values"),
    [(RideSettings, {"scale": 16}), (IndependentSettings, {"head": "linear"}), (IndependentSettings, {"scale": 64})],
)
def test_margins_of_another_scale_are_refused(config, values):
    with pytest.raises(ValueError, match="ldam's 30 needs a cosine head with the same scale"):
        config(name="any", **values)
    config(name="any", **values, loss={"name": "softmax"})
