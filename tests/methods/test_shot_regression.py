"""MetaModelNet: regression from few-shot to many-shot classifiers, against plain loops."""

import numpy as np
import pytest
import torch

from facelt.errors import UserError
from facelt.methods.base import StepContext
from facelt.methods.few_shot import (
    MetaModelNet,
    MetaModelNetSettings,
    ModelRegression,
    ModelRegressionSettings,
    softmax_regression,
)
from tests.methods.small import CLASSES, COUNTS, DIM, FIRST, reloaded, run_dataset_passes, small_network, training_set

KINDS = {
    "model_regression": (ModelRegression, ModelRegressionSettings, {"hidden": 5}),
    "meta_model_net": (MetaModelNet, MetaModelNetSettings, {}),
}


def build(name, counts=COUNTS, **config):
    method, settings, own = KINDS[name]
    counts_C = None if counts is None else torch.tensor(counts)
    return method(settings(name=name, **{"levels": 3, **own, **config}), small_network(), CLASSES, counts_C)


def filled(name, **config):
    method = build(name, **config)
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in method.parameter_groups()["head"]:
            value.copy_(0.3 * torch.randn(value.shape, generator=random))
    run_dataset_passes(method, training_set())
    return method.eval()


def test_softmax_regression_has_no_gradient_and_weights_classes_equally():
    random = torch.Generator().manual_seed(0)
    label_N = torch.tensor([0] * 12 + [1] * 5 + [3] * 2)
    feature_ND = torch.randn(19, 3, generator=random) + torch.randn(4, 3, generator=random)[label_N]
    weights = softmax_regression(feature_ND, label_N, 4, decay=0.1, steps=60).double().numpy()
    # Plain gradient descent in float64 on the mean of the classes' means.
    rows = np.concatenate([feature_ND.double().numpy(), np.ones((19, 1))], axis=1)
    weight, onehot = np.zeros((4, 4)), np.eye(4)[label_N.numpy()]
    share = 1 / (3 * np.bincount(label_N.numpy(), minlength=4)[label_N.numpy()])
    for _ in range(4000):
        answer = np.exp(rows @ weight.T)
        answer /= answer.sum(axis=1, keepdims=True)
        weight -= 0.5 * ((share[:, None] * (answer - onehot)).T @ rows + 0.1 * weight)
    assert np.abs(weights - weight).max() < 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_a_class_answers_from_the_level_its_images_reach(name):
    method, data, image = filled(name), training_set(), torch.randn(4, 3, 2, 2)
    # 9 images are many with three levels, 7, 5 reach 4, 3 and 2 reach 2; the class without images stays as it is.
    assert method.level_C.tolist() == [3, 2, 2, 1, 1, 3]
    with torch.no_grad():
        query_ND = torch.cat([method.network(image), torch.ones(4, 1)], dim=1)
        grown = [method.predict_weights(method.few_CE[c : c + 1], method.level_C[c])[0] for c in range(1, 5)]
        grown.insert(0, method.many_CE[0])
        expected = torch.stack([query_ND @ row for row in [*grown, method.many_CE[5]]], dim=1)
        seen = method.network(data.image_B3HW)
    assert torch.allclose(method.logits(image).local_BC, expected, atol=1e-4)
    many = softmax_regression(seen, data.label_B, CLASSES, decay=1e-3, steps=30)
    assert torch.allclose(method.many_CE, many, atol=1e-4)
    assert not method.few_CE[[0, 5]].any()
    assert (method.few_CE[1:5].norm(dim=1) > 0).all()
    again = reloaded(method, lambda: build(name, counts=None))
    assert torch.equal(again.logits(image).local_BC, method.logits(image).local_BC)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_is_the_regression_of_weights_and_the_loss_of_the_answers(name):
    method, data = filled(name, classification_weight=0.7), training_set()
    method.train()
    output = method.step([data], FIRST)
    generator = FIRST.generator("cpu", same_on_all_ranks=True)
    level = method.level(FIRST, generator)
    with torch.no_grad():
        feature, label = method._bank.sample_per_class(2**level, generator)
        few = softmax_regression(feature, label, CLASSES, decay=1e-3, steps=30)
        learned = [c for c, count in enumerate(COUNTS) if count >= 2 * 2**level]
        rows, distance, size = method.many_CE.clone(), 0.0, 0.0
        for c in learned:
            rows[c] = method.predict_weights(few[c : c + 1], level)[0]
            distance += (rows[c] - method.many_CE[c]).square().sum().item()
            size += method.many_CE[c].square().sum().item()
        answers = (torch.cat([method.network(data.image_B3HW), torch.ones(26, 1)], dim=1) @ rows.T).tolist()
    terms = []
    for row, label in zip(answers, data.label_B.tolist(), strict=True):
        if name == "model_regression":
            terms.append(sum(max(0.0, 1 - row[label] + z) for c, z in enumerate(row) if c != label) / CLASSES)
        else:
            terms.append(np.log(np.exp(np.array(row) - row[label]).sum()))
    assert 0 < len(learned) < CLASSES
    assert output.parts["regression_loss"].item() == pytest.approx(distance / size, rel=1e-3)
    assert output.parts["classification_loss"].item() == pytest.approx(np.mean(terms), rel=1e-3)
    assert output.loss.item() == pytest.approx(distance / size + 0.7 * np.mean(terms), rel=1e-3)
    output.loss.backward()
    assert all(value.grad is None for value in method.network.parameters())
    assert any(value.grad is not None and value.grad.any() for value in method.parameter_groups()["head"])


def test_model_regression_draws_every_level():
    method = build("model_regression")
    drawn = {
        method.level(step, step.generator("cpu", same_on_all_ranks=True))
        for step in (StepContext(0, 1, s, 40) for s in range(40))
    }
    assert drawn == {0, 1, 2}


def test_blocks_are_trained_from_the_last_to_the_first_and_the_others_are_frozen():
    method, data = filled("meta_model_net"), training_set()
    steps = [StepContext(epoch, 2, step, 3) for epoch in range(2) for step in range(3)]
    active = []
    for progress in steps:
        method.zero_grad(set_to_none=True)
        method.step([data], progress).loss.backward()
        (block,) = [index for index, block in enumerate(method.blocks) if block.first.weight.grad is not None]
        active.append(block)
    assert active == [2, 2, 1, 1, 0, 0]


def test_a_chain_begins_as_the_identity():
    method, weight = build("meta_model_net"), torch.randn(4, DIM + 1)
    assert torch.equal(method.predict_weights(weight, 0), weight)


@pytest.mark.parametrize("name", KINDS)
def test_a_resumed_stage_takes_the_features_again_and_keeps_its_classifiers(name):
    method = filled(name)
    again = build(name)
    again.load_state_dict({key: value.clone() + 0 for key, value in method.state_dict().items()})
    with torch.no_grad():
        again.many_CE += 1
    assert again.needs_dataset_pass
    run_dataset_passes(again, training_set())
    assert torch.equal(again.many_CE, method.many_CE + 1)
    assert torch.equal(again._bank.feature_ND, method._bank.feature_ND)


def test_more_levels_than_the_largest_class_has_images_for_are_refused():
    with pytest.raises(UserError, match="levels: 4 levels need classes of 16 training images"):
        build("model_regression", levels=4)
