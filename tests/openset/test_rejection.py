"""Open-set scores compared with formulas written out for single images."""

import math

import numpy as np
import pytest
import torch

from facelt.config.registry import OPENSET_SCORERS
from facelt.errors import UserError
from facelt.openset.rejection import MaxSoftmax, ModelOutputs, Odin, OpenSetScorer, OpenSetScores, Reachability

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.0, 0.0], [-3.0, -1.0, -2.0]])


def outputs(logit_NC=LOGITS, reachability_N=None, image_N3HW=None, std=(1.0, 1.0, 1.0), logits_fn=None) -> ModelOutputs:
    return ModelOutputs(logit_NC, reachability_N, image_N3HW, std, logits_fn)


def reject_below(scores: OpenSetScores, threshold: float) -> list[int]:
    return scores.class_N.masked_fill(scores.decision_score_N < threshold, -1).tolist()


def softmax(logits):
    whole = [math.exp(value) for value in logits]
    return [value / sum(whole) for value in whole]


def test_the_threshold_is_held_against_the_largest_probability():
    scores = MaxSoftmax().score(outputs())
    expected = [max(softmax(row)) for row in LOGITS.tolist()]
    assert scores.score_N.tolist() == pytest.approx(expected, abs=1e-12)
    assert scores.class_N.tolist() == [0, 0, 1]
    assert reject_below(scores, 0.5) == [0, -1, 1]
    # At the threshold an image is accepted.
    assert reject_below(scores, scores.score_N[1].item()) == [0, 0, 1]
    assert reject_below(scores, 0.7) == [0, -1, -1]


def test_reachability_is_the_score_and_the_logits_the_class():
    scores = Reachability().score(outputs(reachability_N=torch.tensor([0.5, 2.0, 1.0])))
    assert scores.score_N.tolist() == scores.decision_score_N.tolist() == [0.5, 2.0, 1.0]
    assert scores.class_N.tolist() == [0, 0, 1]
    assert reject_below(scores, 1.0) == [-1, 0, 1]
    with pytest.raises(UserError, match="reachability: this model has no memory"):
        Reachability().score(outputs())


def test_odin_is_its_formula():
    random = np.random.default_rng(0)
    weight_C12 = random.normal(size=(3, 12))
    image_N3HW = torch.from_numpy(random.normal(size=(4, 3, 2, 2)))
    std = (0.5, 0.25, 2.0)

    def logits_of(image_N3HW):
        return torch.tanh(image_N3HW).flatten(1) @ torch.from_numpy(weight_C12).T

    def logits(pixels):
        return [float(np.tanh(pixels) @ row) for row in weight_C12]

    expected = []
    for pixels in image_N3HW.flatten(1).numpy():
        best, probability = int(np.argmax(logits(pixels))), softmax([z / 1000 for z in logits(pixels)])
        # d(-log p_best) / dz = p - one-hot, dz / dx = W (1 - tanh(x)^2); the factor 1 / T changes no sign.
        slope = sum((p - (c == best)) * weight_C12[c] for c, p in enumerate(probability)) * (1 - np.tanh(pixels) ** 2)
        moved = [
            x - 0.0028 * (1 if s >= 0 else -1) / std[i // 4] for i, (x, s) in enumerate(zip(pixels, slope, strict=True))
        ]
        expected.append(max(softmax([z / 1000 for z in logits(np.array(moved))])))
    scores = Odin().score(outputs(logits_of(image_N3HW), None, image_N3HW, std, logits_of))
    assert scores.score_N.numpy() == pytest.approx(np.array(expected), abs=1e-11)
    assert np.ptp(expected) > 1e-6
    assert scores.class_N.tolist() == logits_of(image_N3HW).argmax(1).tolist()


def test_odin_moves_a_pixel_without_a_gradient_down_and_leaves_no_trace():
    image_N3HW = torch.zeros(1, 3, 1, 1)
    inputs = []

    def logits_of(image_N3HW):
        inputs.append(image_N3HW.detach().clone())
        return torch.stack([image_N3HW.square().sum((1, 2, 3)), torch.zeros(len(image_N3HW))], dim=1)

    with torch.no_grad():
        Odin().score(outputs(torch.tensor([[1.0, 0.0]]), None, image_N3HW, (0.5, 0.5, 0.5), logits_of))
    assert inputs[1].flatten().tolist() == pytest.approx([-0.0056] * 3)
    assert not image_N3HW.requires_grad


def test_the_score_of_an_image_is_its_own_whatever_the_batch():
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 5)).double()
    image_N3HW = torch.rand(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = Odin().score(outputs(layer(image_N3HW), None, image_N3HW, logits_fn=layer)).score_N
    alone = [
        Odin().score(outputs(layer(image_13HW), None, image_13HW, logits_fn=layer)).score_N
        for image_13HW in image_N3HW.split(1)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", OPENSET_SCORERS)
def test_every_method_has_a_valid_default_threshold_and_says_if_it_must_be_fitted(name):
    method = OPENSET_SCORERS[name]()
    assert isinstance(method, OpenSetScorer)
    assert method.threshold is None or 0 < method.threshold < 1
    if not method.needs_training_images:
        with pytest.raises(TypeError, match="is not fitted"):
            method.fit(lambda: iter(()))
