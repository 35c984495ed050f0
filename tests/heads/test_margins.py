"""Margins against the authors' results, loops over images and classes, one process against several, and refusals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from facelt.config.registry import MARGINS
from facelt.config.train import TrainConfig
from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import BatchSplit, rank, world_size
from facelt.distributed.logits import ClassifierLogits, ClassWeights, GatheredFeatures
from facelt.errors import UserError
from facelt.heads.classifiers import MarginHead
from facelt.heads.margins import CombinedMargin
from facelt.methods.classify import Classify, ClassifySettings
from facelt.training.run import run
from tests.distributed.ranks import run_ranks
from tests.methods.small import CLASSES as SMALL_CLASSES
from tests.methods.small import COUNTS, FIRST, small_network, training_set

CLASSES, DIM, BATCH, SCALE = 7, 4, 6, 5.0
PRIOR = np.log([40, 20, 10, 5, 3, 2, 1])
# One margin each, with settings under which images of the batch take every branch of it.
SETTINGS = {
    "combined": {"angular": 1.1, "additive": 0.3, "cosine": 0.1},
    "arcface": {"m": 0.5},
    "cosface": {"m": 0.35},
    "adaface": {"ema": 0.4, "h": 0.7},
    "mv_softmax": {"form": "am", "m": 0.2, "t": 0.3},
    "mv_softmax arc fixed": {"form": "arc", "m": 0.2, "t": 0.3, "reweight": "fixed"},
    "circle": {"m": 0.25},
}
CASES = [(name, rate, weight) for name in SETTINGS for rate in (1.0, 0.4) for weight in (0.0, 0.6)]


def margin_of(name: str):
    return MARGINS[name.split()[0]](**SETTINGS[name])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Features with norms from below AdaFace's limits to above them, one near its class and one opposite to it."""
    generator = torch.Generator().manual_seed(5)
    direction = F.normalize(torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64), dim=1)
    return direction * torch.tensor([5e-4, 20.0, 150.0, 35.0, 90.0, 1.0])[:, None].double(), torch.tensor(
        [6, 0, 3, 3, 1, 6]
    )


def weights() -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(CLASSES, DIM, generator=generator, dtype=torch.float64)
    feature, label = batch()
    weight[label[2]] = 0.02 * feature[2] + 0.1
    weight[label[1]] = -0.05 * feature[1] + 0.1
    return weight


def adaface_averages(norms: list[float], ema: float) -> tuple[float, float]:
    clipped = [min(max(norm, 0.001), 100) for norm in norms]
    mean = sum(clipped) / len(clipped)
    std = math.sqrt(sum((norm - mean) ** 2 for norm in clipped) / (len(clipped) - 1))
    return ema * 20 + (1 - ema) * mean, ema * 100 + (1 - ema) * std


def plain_target(name: str, cosine: float, quality: float) -> tuple[float, float]:
    """The target cosine with the margin, and its derivative."""
    options, theta = SETTINGS[name], math.acos(cosine)
    if name == "circle":
        weight = 1 + options["m"] - cosine
        return weight * (cosine - (1 - options["m"])), weight
    if name == "cosface" or options.get("form") == "am":
        return cosine - options["m"], 1.0
    if name == "adaface":
        enlarged = theta - 0.4 * quality
        slope = math.sin(enlarged) / math.sin(theta) if 0 <= enlarged <= math.pi else 0.0
        return math.cos(min(max(enlarged, 0), math.pi)) - 0.4 * quality - 0.4, slope
    angular, additive = options.get("angular", 1), options.get("additive", options.get("m"))
    enlarged, less = angular * theta + additive, options.get("cosine", 0)
    if enlarged <= math.pi:
        return math.cos(enlarged) - less, angular * math.sin(enlarged) / math.sin(theta)
    penalty = max(additive * math.sin(additive), 1 + math.cos((math.pi - additive) / angular))
    return cosine - penalty - less, 1.0


def plain_negative(name: str, cosine: float, target: float) -> tuple[float, float]:
    options = SETTINGS[name]
    if name == "circle":
        weight = max(cosine + options["m"], 0)
        return weight * (cosine - options["m"]), weight
    if name.startswith("mv_softmax") and cosine > target:
        factor = 1 if options.get("reweight") == "fixed" else 1 + options["t"]
        return factor * cosine + options["t"], factor
    return cosine, 1.0


def plain_loss(name: str, feature: np.ndarray, weight: np.ndarray, label: list[int], drawn: list[int], prior_weight):
    """Loss and gradients of features and weights by a loop over images and the drawn classes, and what happened."""
    norms = [math.sqrt(sum(row**2)) for row in feature]
    mean, std = adaface_averages(norms, SETTINGS["adaface"]["ema"])
    loss, grad_feature, grad_weight, branches = 0.0, np.zeros_like(feature), np.zeros_like(weight), set()
    for row, own, norm in zip(range(len(feature)), label, norms, strict=True):
        raw_quality = SETTINGS["adaface"]["h"] * (min(max(norm, 0.001), 100) - mean) / (std + 0.001)
        quality = min(max(raw_quality, -1), 1)
        lengths = {k: math.sqrt(sum(weight[k] ** 2)) for k in drawn}
        cosine = {k: sum(feature[row] * weight[k]) / (norm * lengths[k]) for k in drawn}
        value, slope = {}, {}
        value[own], slope[own] = plain_target(name, cosine[own], quality)
        target = value[own]
        for k in drawn:
            if k != own:
                value[k], slope[k] = plain_negative(name, cosine[k], target)
        branches |= {"target moved" if slope[own] != 1 else "target shifted", f"quality {np.sign(quality):g}"}
        branches |= {"negative changed" if value[k] != cosine[k] else "negative kept" for k in drawn if k != own}
        exponent = {k: math.exp(SCALE * value[k] + prior_weight * PRIOR[k]) for k in drawn}
        total = sum(exponent.values())
        loss -= math.log(exponent[own] / total) / len(feature)
        for k in drawn:
            grad = SCALE * slope[k] * (exponent[k] / total - (k == own)) / len(feature)
            unit, direction = feature[row] / norm, weight[k] / lengths[k]
            grad_feature[row] += grad * (direction - cosine[k] * unit) / norm
            grad_weight[k] += grad * (unit - cosine[k] * direction) / lengths[k]
    return loss, grad_feature, grad_weight, branches


def trained(name: str, rate: float, prior_weight: float) -> dict:
    """One rank's part of a step: the loss, its classes, their gradients, and the margin's state after it."""
    torch.manual_seed(0)
    head = MarginHead(DIM, CLASSES, SCALE, margin_of(name), sample_rate=rate).double()
    classes = slice(head.classes.first, head.classes.stop)
    with torch.no_grad():
        head.weight.copy_(weights()[classes])
    feature, label = batch()
    own = slice(BATCH * rank() // world_size(), BATCH * (rank() + 1) // world_size())
    feature = feature[own].clone().requires_grad_()
    gathered = GatheredFeatures.gather(feature)
    logits = head.training_logits(gathered, label[own], 3)
    loss = logits.cross_entropy(label[own], prior_weight * torch.from_numpy(PRIOR[classes]) if prior_weight else None)
    loss.backward()
    state = {key: value.clone() for key, value in head.margin.state_dict().items()}
    head.after_step(gathered, torch.tensor(True))
    drawn = torch.arange(len(head.classes)) if rate == 1 else logits.classes.position_K
    return {
        "loss": loss.detach(),
        "drawn": (drawn + head.classes.first).tolist(),
        "feature": feature.grad,
        "weight": head.weight.grad.to_dense(),
        "evaluation": head(gathered).local_BC.detach(),
        "before": state,
        "state": dict(head.margin.state_dict()),
    }


def train_cases() -> dict:
    return {case: trained(*case) for case in CASES}


@pytest.fixture(scope="module", params=[1, 2, 3], ids=["1 process", "2 processes", "3 processes"])
def results(request, tmp_path_factory) -> list[dict]:
    if request.param == 1:
        return [train_cases()]
    return run_ranks(train_cases, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_loss_and_gradients_equal_a_loop_over_images_and_classes(case, results):
    parts = [result[case] for result in results]
    name, rate, prior_weight = case
    drawn = [k for part in parts for k in part["drawn"]]
    assert rate == 1 or len(results) > 1 or len(drawn) < CLASSES
    (feature, label), weight = batch(), weights()
    loss, grad_feature, grad_weight, _ = plain_loss(
        name, feature.numpy(), weight.numpy(), label.tolist(), drawn, prior_weight
    )
    for part in parts:
        assert part["loss"].item() == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(torch.cat([part["feature"] for part in parts]), torch.from_numpy(grad_feature))
    torch.testing.assert_close(torch.cat([part["weight"] for part in parts]), torch.from_numpy(grad_weight))


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_of_evaluation_have_no_margin(name, results):
    cosine = F.normalize(batch()[0], dim=1) @ F.normalize(weights(), dim=1).T
    evaluation = torch.cat([result[name, 1.0, 0.6]["evaluation"] for result in results], dim=1)
    torch.testing.assert_close(evaluation, SCALE * cosine)


def test_adafaces_averages_are_those_of_the_global_batch_and_equal_on_all_ranks(results):
    mean, std = adaface_averages(batch()[0].norm(dim=1).tolist(), SETTINGS["adaface"]["ema"])
    for rate in (1.0, 0.4):
        parts = [result["adaface", rate, 0.0] for result in results]
        for part in parts:
            # A step that is skipped leaves them unchanged.
            assert {key: value.item() for key, value in part["before"].items()} == {"norm_mean": 20, "norm_std": 100}
            assert part["state"].keys() == {"norm_mean", "norm_std"}
            assert all(torch.equal(part["state"][key], parts[0]["state"][key]) for key in part["state"])
            assert part["state"]["norm_mean"].item() == pytest.approx(mean, rel=1e-12)
            assert part["state"]["norm_std"].item() == pytest.approx(std, rel=1e-12)


def test_the_batch_takes_every_branch():
    """So that the comparison with the loop covers them."""
    (feature, label), weight = batch(), weights()
    taken = {
        name: plain_loss(name, feature.numpy(), weight.numpy(), label.tolist(), list(range(CLASSES)), 0)[-1]
        for name in SETTINGS
    }
    assert {"target moved", "target shifted"} <= taken["combined"] & taken["arcface"]
    assert {"negative changed", "negative kept"} <= taken["mv_softmax"] & taken["mv_softmax arc fixed"]
    assert {"quality 1", "quality -1"} <= taken["adaface"]


def test_adafaces_quality_is_clipped_and_a_batch_of_one_image_is_finite():
    margin = MARGINS["adaface"](ema=0.0, h=0.9)
    quality = margin.quality(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 90.0]))
    assert quality[-1] == 1
    assert quality[0] == pytest.approx(0.9 * (1 - 95 / 6) / (89 / math.sqrt(6)), rel=1e-3)
    assert torch.isfinite(margin.quality(torch.tensor([30.0]))).all()
    angle = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    for quality in (-1.0, 0.0, 1.0):
        cosine = angle.cos().requires_grad_()
        target = margin(cosine, torch.tensor(quality))
        assert (target.diff() <= 1e-9).all()
        target.sum().backward()
        assert torch.isfinite(cosine.grad).all()


class GivenCosines(MarginHead):
    """A head whose cosines are given as the feature."""

    def __init__(self, classes: int, margin: CombinedMargin) -> None:
        super().__init__(1, classes, 64.0, margin)

    def forward(self, feature: GatheredFeatures) -> ClassifierLogits:
        rows = ClassWeights(torch.eye(len(self.classes), dtype=feature.global_BD.dtype))
        return ClassifierLogits(self.scale * feature.global_BD, rows, self.classes, feature.batch_split)


@pytest.mark.parametrize(
    ("reference", "name", "m"), [("arcface_s64_m0.5", "arcface", 0.5), ("cosface_s64_m0.4", "cosface", 0.4)]
)
def test_equals_the_authors_loss(golden, reference, name, m):
    values = np.load(golden / "losses.npz")
    cosine = torch.from_numpy(values["cosine"]).requires_grad_()
    label = torch.from_numpy(values["labels"])
    head = GivenCosines(cosine.shape[1], MARGINS[name](m=m))
    loss = head.training_logits(GatheredFeatures.gather(cosine), label).cross_entropy(label)
    loss.backward()
    assert abs(loss.item() - values[f"{reference}/loss"]) <= 1e-5 * values[f"{reference}/loss"]
    if f"{reference}/grad" in values:
        expected = values[f"{reference}/grad"]
        assert np.abs(cosine.grad.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("factors", [(1, 0.5, 0), (1.1, 0.3, 0.1), (1.35, 0, 0)])
def test_the_target_never_rises_as_the_angle_grows_and_its_slope_is_finite(factors):
    margin = CombinedMargin(*factors)
    cosine = torch.linspace(1, -1, 2001, dtype=torch.float64, requires_grad=True)
    target = margin(cosine)
    assert (target.diff() <= 1e-9).all()
    target.sum().backward()
    assert torch.isfinite(cosine.grad).all()


def test_a_rank_without_the_target_class_applies_no_margin():
    head = GivenCosines(4, CombinedMargin(1, 0.5, 0))
    head.classes = ClassRange(4, 8, 8)
    cosine, label = torch.rand(2, 4, requires_grad=True), torch.tensor([0, 3])
    feature = GatheredFeatures.gather(cosine, BatchSplit((2,)))
    result = [logits.cross_entropy(label) for logits in (head.training_logits(feature, label), head(feature))]
    torch.testing.assert_close(*result, rtol=0, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, cosine)[0] for loss in result), rtol=0, atol=0)


def settings(**values) -> ClassifySettings:
    return ClassifySettings(name="classify", **values)


def test_a_margin_brings_its_scale_and_arcface_is_the_default():
    scales = {name: Classify(settings(head="margin", margin={"name": name}), small_network(), 3) for name in MARGINS}
    assert {name: method.head.scale for name, method in scales.items()} == {
        **dict.fromkeys(("arcface", "cosface", "combined", "adaface"), 64),
        "mv_softmax": 32,
        "circle": 256,
    }
    default = Classify(settings(head="margin"), small_network(), 3).head.margin
    assert (default.angular, default.additive, default.cosine) == (1, 0.5, 0)
    assert Classify(settings(head="margin", margin={"name": "circle"}, scale=9), small_network(), 3).head.scale == 9


@pytest.mark.parametrize("head", ["linear", "cosine", "margin"])
def test_a_prior_is_added_in_training_only(head):
    data, counts = training_set(), torch.tensor(COUNTS).clamp_min(1)
    method = Classify(settings(head=head, prior_weight=0.5), small_network(), SMALL_CLASSES, counts).eval()
    plain = Classify(settings(head=head), small_network(), SMALL_CLASSES).eval()
    plain.load_state_dict(method.state_dict())
    feature = method.gathered_features(data.image_B3HW)
    logits = plain.head.training_logits(feature, data.label_B)
    expected = logits.cross_entropy(data.label_B, 0.5 * counts.log())
    assert method.step([data], FIRST).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert expected != logits.cross_entropy(data.label_B)
    assert torch.equal(method.logits(data.image_B3HW).local_BC, plain.logits(data.image_B3HW).local_BC)
    with pytest.raises(RuntimeError, match="needs the class counts"):
        Classify(settings(head=head, prior_weight=0.5), small_network(), SMALL_CLASSES).step([data], FIRST)


def test_a_prior_of_a_class_without_images_is_one_line(recipe, tmp_path):
    # The sixth identity of these faces has no image.
    method = {"name": "classify", "head": "margin", "prior_weight": 1.0}
    values = recipe(tmp_path / "run", stages=[{"name": "only", "method": method, "epochs": 1}])
    message = "stages: 'only': prior_weight: class 5 has no training images, so log n does not exist; set"
    with pytest.raises(UserError, match=message) as caught:
        run(TrainConfig.model_validate(values))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"prior_weight: 2 classes \(0, ...\) have no training images"):
        Classify(settings(prior_weight=1.0), small_network(), 3, torch.tensor([0, 4, 0]))


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_margin_needs_its_head(head, margin):
    with pytest.raises(ValidationError, match=f"margin: the head {head} has no margin; set head: margin"):
        settings(head=head, margin={"name": margin})


@pytest.mark.parametrize(
    ("margin", "key"),
    [
        ({"name": "arcface", "m": -0.1}, "m"),
        ({"name": "arcface", "m": 2}, "m"),
        ({"name": "cosface", "m": 1.5}, "m"),
        ({"name": "cosface", "m": float("nan")}, "m"),
        ({"name": "combined", "angular": 0.5}, "angular"),
        ({"name": "adaface", "h": -1}, "h"),
        ({"name": "adaface", "ema": 1}, "ema"),
        ({"name": "mv_softmax", "form": "sphere"}, "form"),
        ({"name": "mv_softmax", "t": -0.2}, "t"),
        ({"name": "circle", "m": 1}, "m"),
        ({"name": "circle", "gamma": 256}, "gamma"),
        ({"name": "circel"}, "name"),
        ({"m": 0.5}, "name"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_key(margin, key):
    with pytest.raises(ValidationError) as caught:
        settings(head="margin", margin=margin)
    assert [error["loc"] for error in caught.value.errors()] == [("margin", key)]


def test_a_prior_needs_plain_cross_entropy():
    with pytest.raises(ValidationError, match="loss: prior_weight requires plain cross-entropy"):
        settings(prior_weight=1.0, loss={"name": "focal"})
    with pytest.raises(ValidationError, match="prior_weight"):
        settings(prior_weight=-1.0)


def test_the_three_factors_of_earlier_versions_are_the_combined_margin():
    config = settings(head="margin", margins=[1, 0.2, 0.1])
    assert config.margin.options == {"angular": 1, "additive": 0.2, "cosine": 0.1}
    assert "margins" not in config.model_dump()
    # Cards of models without a margin have the key as well.
    assert settings(margins=None) == settings()
    for values in ({"margins": [1, 0.2]}, {"margins": 0.5}, {"margins": [1, 0.5, 0], "margin": {"name": "circle"}}):
        with pytest.raises(ValidationError, match="margins: this key of earlier versions is replaced by margin"):
            settings(head="margin", **values)
    with pytest.raises(ValidationError, match="margin: the head linear has no margin"):
        settings(margins=[1, 0.5, 0])
