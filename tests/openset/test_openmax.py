"""OpenMax compared with the authors' steps written as loops, and its Weibull fits with the likelihood."""

import warnings

import numpy as np
import pytest
import torch

from facelt.errors import UserError
from facelt.openset.rejection import (
    _SHIFT,
    TAIL_SIZE,
    ModelOutputs,
    OpenMax,
    OpenSetScores,
    WeibullTails,
    logit_distance,
)

CLASSES = 12


def training(images: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels, most of them correct; class 10 never is, and class 11 twice."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, images)
    logits = random.normal(size=(images, CLASSES)) - 1
    logits[np.arange(images), labels] += random.gamma(4, 1, images)
    # By turns, so that both lists of rare images can be made.
    logits[labels == 10, 10] = -9
    logits[np.flatnonzero(labels == 11)[2:], 11] = -9
    logits[np.flatnonzero(labels == 11)[:2], 11] = 9
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


def passes(logit_NC, label_N, batch=64):
    return lambda: zip(logit_NC.split(batch), label_N.split(batch), strict=True)


def score(method, logit_NC) -> OpenSetScores:
    return method.score(ModelOutputs(logit_NC, None, None, (1.0, 1.0, 1.0), None))


@pytest.fixture(scope="module")
def fitted():
    method = OpenMax()
    method.fit(passes(*training()))
    return method


def plain_distance(first, second):
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return np.linalg.norm(first - second) / 200 + 1 - cosine


def test_means_and_tails_are_those_of_rightly_classified_images(fitted):
    logits, labels = (value.double().numpy() for value in training())
    for number in range(CLASSES):
        right = logits[(labels == number) & (logits.argmax(1) == number)]
        if number == 10:
            assert not len(right)
            continue
        assert fitted.mean_CC[number].numpy() == pytest.approx(right.mean(0), abs=1e-9)
        if number == 11:
            assert len(right) == 2
            continue
        tail = sorted(plain_distance(row, right.mean(0)) for row in right)[-TAIL_SIZE:]
        assert fitted.tails.location_C[number] == pytest.approx(tail[0] - _SHIFT, abs=1e-9)
    assert np.flatnonzero(np.isnan(fitted.tails.shape_C)).tolist() == [10, 11]
    assert np.isnan(fitted.tails.shape_C).sum() == 2


def test_the_batches_of_a_pass_do_not_matter(fitted):
    other = OpenMax()
    other.fit(passes(*training(), batch=7))
    logits = torch.randn(20, CLASSES, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(score(other, logits).score_N, score(fitted, logits).score_N, rtol=1e-6, atol=1e-8)


def plain_probabilities(fitted, logits):
    """(probabilities of the known classes, of the unknown one) for one image."""
    moved = logits.copy()
    for rank, number in enumerate(np.argsort(-logits)[:10], start=1):
        far = plain_distance(logits, fitted.mean_CC[number].numpy()) if number < 10 else 0.0
        weibull = fitted.tails.cdf(np.array([far]), np.array([number]))[0] if number < 10 else 0.0
        moved[number] = logits[number] * (1 - (11 - rank) / 10 * weibull)
    whole = np.exp([*moved, sum(logits - moved)])
    return whole[:-1] / whole.sum(), whole[-1] / whole.sum()


def test_the_verdict_is_that_of_the_steps_one_by_one(fitted):
    test = torch.cat(
        [training(60, seed=1)[0], torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(1)) * 3]
    )
    result = score(fitted, test)
    rejected = []
    for row, logits in enumerate(test.double().numpy()):
        known, unknown = plain_probabilities(fitted, logits)
        assert result.class_N[row] == known.argmax()
        assert result.decision_score_N[row].item() == pytest.approx(known.max(), rel=1e-9)
        assert result.score_N[row].item() == pytest.approx(np.log((1 - unknown) / unknown), rel=1e-6, abs=1e-9)
        rejected.append(unknown > known.max() or known.max() < 0.3)
    assert (result.unknown_N | (result.decision_score_N < 0.3)).tolist() == rejected
    assert result.unknown_N.any()
    assert 0 < sum(rejected) < len(rejected)


def test_negative_logits_count_in_the_unknown_one(fitted):
    # Far from every mean, so that W is 1 and each of the ten largest loses its share: all of them are negative.
    logits = torch.full((1, CLASSES), -2.0) - 0.01 * torch.arange(CLASSES)
    known, unknown = plain_probabilities(fitted, logits[0].double().numpy())
    result = score(fitted, logits)
    assert result.score_N.item() == pytest.approx(np.log((1 - unknown) / unknown))
    # They pull the unknown class down: without them it would have logit 0 and win.
    assert not result.unknown_N.item()
    assert unknown < known.min()


def test_a_class_with_too_few_right_images_keeps_its_logit(fitted):
    for number in range(CLASSES):
        logits = torch.zeros(1, CLASSES)
        logits[0, number] = 60.0
        result = score(fitted, logits)
        # Any other class is too far from its mean for its logit to stay.
        assert result.unknown_N.item() == (number < 10)
        if number >= 10:
            assert result.class_N.item() == number
            assert result.decision_score_N.item() == pytest.approx(1, abs=1e-6)


def test_fewer_classes_than_ranks_and_no_class_ever_right():
    logits, labels = torch.tensor([[2.0, 0.0], [1.0, 3.0], [4.0, -1.0]]), torch.tensor([1, 0, 1])
    method = OpenMax()
    method.fit(passes(logits, labels))
    assert np.isnan(method.tails.shape_C).sum() == 2
    result = score(method, logits)
    # Nothing was moved: the unknown class has logit 0, the others are unchanged.
    expected = torch.cat([logits, torch.zeros(3, 1)], dim=1).double().softmax(dim=1)
    assert torch.allclose(result.decision_score_N, expected[:, :2].amax(dim=1))


def test_no_training_image_and_too_many_classes_are_refused():
    with pytest.raises(UserError, match="none of the training images can be read"):
        OpenMax().fit(lambda: iter(()))
    with pytest.raises(UserError, match="20,001 classes"):
        OpenMax().fit(passes(torch.zeros(1, 20_001), torch.zeros(1, dtype=torch.int64)))


def test_the_distance_is_a_two_hundredth_of_euclids_and_one_less_the_cosine():
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, -3.0]])
    assert logit_distance(first, second).item() == pytest.approx(np.sqrt(50) / 200 + 1)


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 0.3, 5])
@pytest.mark.parametrize("images", [3, 10, 60])
def test_a_fit_has_the_greatest_likelihood_and_is_that_of_gumbel(spread, images):
    from scipy.stats import gumbel_l, weibull_min

    distances = np.random.default_rng(images).gamma(2, spread, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tails = WeibullTails.fit(distances, np.zeros(images, dtype=np.int64), 1)
    tail = np.sort(distances)[-TAIL_SIZE:]
    shape, location, scale = tails.shape_C[0], tails.location_C[0], tails.scale_C[0]
    assert location == tail[0] - _SHIFT

    def likelihood(shape, scale):
        return weibull_min.logpdf(tail, shape, location, scale).sum()

    best = likelihood(shape, scale)
    for factor in (0.98, 1.02):
        assert likelihood(shape * factor, scale) < best
        assert likelihood(shape, scale + (factor - 1) * (tail[-1] - tail[0])) < best
    # In units of the data's range: scipy's search ends early for small numbers.
    unit = (tail - tail[0]) / (tail[-1] - tail[0])
    center, width = gumbel_l.fit(unit)
    where = np.linspace(-0.5, 1.5, 9)
    far = tails.cdf(tail[0] + where * (tail[-1] - tail[0]), np.zeros(9, dtype=np.int64))
    assert far == pytest.approx(gumbel_l.cdf(where, center, width), abs=2e-3)


def test_equal_distances_find_nothing_far():
    tails = WeibullTails.fit(np.full(30, 0.25), np.zeros(30, dtype=np.int64), 2)
    assert np.isnan(tails.shape_C).sum() == 2
    assert tails.cdf(np.array([0.0, 99.0]), np.array([0, 1])).tolist() == [0, 0]
