"""Classifiers of decoupled training against their formulas."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from facelt.config.train import SecondStageSettings, TrainConfig
from facelt.errors import UserError
from facelt.methods.decoupling import (
    LogitAdjustment,
    LogitAdjustmentSettings,
    Lws,
    Ncm,
    NcmSettings,
    TauNorm,
    TauNormSettings,
)
from facelt.training.run import run
from tests.methods.small import (
    CLASSES,
    COUNTS,
    DIM,
    FIRST,
    linear_head,
    reloaded,
    run_dataset_passes,
    small_network,
    training_set,
)


def features(network, image):
    network.eval()
    with torch.no_grad():
        return network(image)


def ncm(**config):
    return Ncm(NcmSettings(name="ncm", **config), small_network(), CLASSES)


def plain_distances(feature_ND, label_N, query_QD, centre):
    """Squared distances of the queries to the class means, one by one, in float64."""
    feature_ND, query_QD = feature_ND.double(), query_QD.double()
    mean_D = feature_ND.mean(0) if centre else torch.zeros(DIM, dtype=torch.float64)
    unit = [(row - mean_D) / (row - mean_D).norm() for row in feature_ND]
    means = {c: sum(u for u, y in zip(unit, label_N, strict=True) if y == c) / n for c, n in enumerate(COUNTS) if n}
    rows = [(row - mean_D) / (row - mean_D).norm() for row in query_QD]
    return torch.stack([torch.stack([(row - mean).square().sum() for mean in means.values()]) for row in rows])


@pytest.mark.parametrize("centre", [True, False])
def test_ncm_orders_classes_by_the_distance_to_their_means(centre):
    method, data = ncm(centre=centre), training_set()
    run_dataset_passes(method, data)
    method.eval()
    query = torch.randn(5, 3, 2, 2)
    expected_QC = plain_distances(
        features(method.network, data.image_B3HW), data.label_B, features(method.network, query), centre
    )
    found_QC = method.logits(query).local_BC
    # |f - c|^2 = 1 - (2 f . c - |c|^2); the class without images is last everywhere.
    assert torch.allclose(1 - found_QC[:, :5].double(), expected_QC, atol=1e-5)
    assert (found_QC.argmin(dim=1) == 5).all()
    again = reloaded(method, lambda: ncm(centre=centre))
    assert torch.equal(again.logits(query).local_BC, found_QC)
    assert not again.needs_dataset_pass


def test_the_cosine_to_the_means_does_not_depend_on_their_length():
    method, data = ncm(distance="cosine", centre=False), training_set()
    run_dataset_passes(method, data)
    method.eval()
    query = torch.randn(5, 3, 2, 2)
    feature_ND, query_QD = (features(method.network, image).double() for image in (data.image_B3HW, query))
    unit_ND = feature_ND / feature_ND.norm(dim=1, keepdim=True)
    for label in range(5):
        mean_D = unit_ND[data.label_B == label].mean(0)
        expected_Q = query_QD @ mean_D / query_QD.norm(dim=1) / mean_D.norm()
        assert torch.allclose(method.logits(query).local_BC[:, label].double(), expected_Q, atol=1e-5)
    assert (method.logits(query).local_BC[:, 5] == -1).all()


def test_ncm_takes_no_steps_and_leaves_the_network_as_it_is():
    method, data = ncm(), training_set()
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    run_dataset_passes(method, data)
    method.train().features(data.image_B3HW)
    assert all(torch.equal(value, before[name]) for name, value in method.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in method.parameters())
    with pytest.raises(TypeError, match="takes no steps"):
        method.step([data], FIRST)


def tau_norm(**config):
    method = TauNorm(TauNormSettings(name="tau_norm", **config), small_network(), CLASSES)
    method.load_stage(linear_head())
    return method.eval()


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_tau_norm_divides_the_rows_and_drops_the_bias(tau):
    method, image = tau_norm(), torch.randn(4, 3, 2, 2)
    method.set_value(tau)
    weight_CD, feature_BD = linear_head()["head.weight"], features(method.network, image)
    expected_BC = torch.stack([feature_BD @ row / sum(x * x for x in row) ** (tau / 2) for row in weight_CD], dim=1)
    assert torch.allclose(method.logits(image).local_BC, expected_BC, rtol=1e-4, atol=1e-5)
    assert torch.equal(reloaded(method, tau_norm).logits(image).local_BC, method.logits(image).local_BC)


def test_tau_is_tried_from_nought_to_two_and_one_where_nothing_is_tried():
    method = tau_norm()
    assert method.tau == 1
    assert list(method.tunable_values) == pytest.approx([0.1 * step for step in range(21)])


def logit_adjustment(counts=None, **config):
    settings = LogitAdjustmentSettings(name="logit_adjustment", **config)
    method = LogitAdjustment(settings, small_network(), CLASSES, counts)
    method.load_stage(linear_head())
    return method.eval()


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.6])
def test_logit_adjustment_takes_tau_times_the_log_prior_from_every_logit(tau):
    method, image = logit_adjustment(torch.tensor(COUNTS), tau=tau).double(), torch.randn(4, 3, 2, 2).double()
    head, feature_BD = linear_head(), features(method.network, image)
    # The class without images counts as the rarest one, which has two.
    counts = (9, 7, 5, 3, 2, 2)
    for row, feature_D in enumerate(feature_BD):
        for label in range(CLASSES):
            plain = sum(head["head.weight"][label].double() * feature_D) + head["head.bias"][label].double()
            expected = plain.item() - tau * math.log(counts[label] / sum(COUNTS))
            assert method.logits(image).local_BC[row, label].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # The saved model holds the prior and tau.
    again = reloaded(method, lambda: logit_adjustment().double())
    assert torch.equal(again.logits(image).local_BC, method.logits(image).local_BC)
    assert method.tunable_values == ()


def test_the_post_hoc_adjustment_undoes_the_prior_of_the_adjusted_loss():
    """A model trained with the prior in its loss has the logits z; z + log n is the plain model that predicts it."""
    counts_C, image = torch.tensor([9, 7, 5, 3, 2, 2]), torch.randn(4, 3, 2, 2)
    method, head = logit_adjustment(counts_C), linear_head()
    adjusted_BC = features(method.network, image) @ head["head.weight"].T + head["head.bias"]
    method.load_stage({"head.weight": head["head.weight"], "head.bias": head["head.bias"] + counts_C.log()})
    found_BC = method.logits(image).local_BC
    assert torch.allclose(found_BC.softmax(dim=1), adjusted_BC.softmax(dim=1), atol=1e-6)


def lws():
    method = Lws(SecondStageSettings(name="lws"), small_network(), CLASSES)
    method.load_stage(linear_head())
    return method


def test_lws_learns_one_factor_a_class_and_nothing_else():
    method, data, head = lws(), training_set(), linear_head()
    method.eval()
    feature_BD = features(method.network, data.image_B3HW)
    scale_C = torch.ones(CLASSES, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        scale_C * (feature_BD @ head["head.weight"].T + head["head.bias"]), data.label_B
    )
    expected.backward()
    output = method.step([data], FIRST)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(method.head.scale_C.grad, scale_C.grad, rtol=1e-4, atol=1e-6)
    assert [name for name, value in method.head.named_parameters() if value.requires_grad] == ["scale_C"]
    with torch.no_grad():
        method.head.scale_C.copy_(torch.arange(6))
    assert torch.equal(reloaded(method, lws).logits(data.image_B3HW).local_BC, method.logits(data.image_B3HW).local_BC)


@pytest.mark.parametrize("build", [tau_norm, logit_adjustment, lws])
def test_an_earlier_stage_without_a_linear_head_is_refused(build):
    method, head = build(), linear_head()
    for state in ({}, {"head.weight": head["head.weight"]}, linear_head(classes=CLASSES + 1)):
        with pytest.raises(UserError, match="init_from: the earlier stage has no head like this one"):
            method.load_stage(state)


@pytest.mark.parametrize("name", ["ncm", "tau_norm", "logit_adjustment", "lws", "fusion"])
def test_a_stage_that_starts_from_nothing_is_refused_before_any_work(name, recipe, tmp_path):
    values = recipe(tmp_path, stages=[{"name": "only", "method": {"name": name}, "epochs": 0}])
    with pytest.raises(ValidationError, match=f"init_from: {name} needs a trained model"):
        TrainConfig.model_validate(values)


def test_what_is_fitted_without_steps_has_no_epochs(recipe, tmp_path):
    plain = {"name": "plain", "method": {"name": "classify"}, "epochs": 1}
    stage = {"name": "ncm", "init_from": "plain", "method": {"name": "ncm"}, "epochs": 1}
    values = recipe(tmp_path, stages=[plain, stage])
    with pytest.raises(ValidationError, match="epochs: ncm takes no steps; set it to 0"):
        TrainConfig.model_validate(values)


TAUS = {"tau_norm": [step / 10 for step in range(21)], "logit_adjustment": [0.0, 0.5, 1.5]}


@pytest.mark.parametrize("name", TAUS)
def test_tau_is_chosen_on_the_validation_images(name, recipe, tmp_path):
    plain = {"name": "plain", "method": {"name": "classify"}, "epochs": 1}
    stage = {"name": "tau", "init_from": "plain", "method": {"name": name}, "epochs": 0}
    if name == "logit_adjustment":
        stage["method"]["candidates"] = TAUS[name]
    folder = run(TrainConfig.model_validate(recipe(tmp_path / "run", stages=[plain, stage])))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tried = {line["setting"]: line["validation_accuracy"] for line in lines if "setting" in line}
    card = json.loads((folder / "tau/card.json").read_text())
    assert list(tried) == pytest.approx(TAUS[name])
    assert tried[card["best"]["setting"]] == max(tried.values())
    left = load_file(folder / "tau/model.safetensors")
    assert left["tau"].item() == pytest.approx(card["best"]["setting"])
    assert torch.equal(left["head.weight"], load_file(folder / "plain/model.safetensors")["head.weight"])
