"""Threshold calibration: measured FPIR, confidence limits, and the gallery size up to which a threshold holds."""

import numpy as np
import pytest
from scipy.stats import binom

from facelt.errors import UserError
from facelt.gallery.gallery import Calibration, Gallery, calibrate_threshold
from facelt.gallery.samples import Samples
from tests.gallery.conftest import DIMENSION, some_samples

TERMS = {"compared": 1000, "templates": False, "by": "similarity"}


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_no_more_than_the_share_reaches_the_threshold(rate):
    score_N = np.random.default_rng(0).random(1000)
    calibration = calibrate_threshold(score_N, np.arange(1000), rate, **TERMS)
    ordered_N = np.sort(score_N)[::-1]
    allowed = round(rate * 1000)
    assert ordered_N[allowed] < calibration.threshold <= ordered_N[allowed - 1]
    assert calibration.fpir == pytest.approx(rate)
    assert calibration.supported == (allowed >= 30)
    assert calibration.threshold_low < calibration.threshold < calibration.threshold_high
    # The threshold's limits are the scores at which the FPIR equals its limits.
    for threshold, share in (
        (calibration.threshold_low, calibration.fpir_high),
        (calibration.threshold_high, calibration.fpir_low),
    ):
        assert (score_N >= threshold).sum() == np.floor(share * 1000)


def test_ties_do_not_let_more_through():
    calibration = calibrate_threshold(np.array([0.5] * 30 + [0.1] * 70), np.arange(100), 0.1, **TERMS)
    assert calibration.threshold > 0.5
    assert calibration.fpir == 0


def test_limits_of_independent_searches_are_those_of_a_share():
    score_N = np.random.default_rng(1).random(400)
    calibration = calibrate_threshold(score_N, np.arange(400), 0.1, **TERMS)
    # Within one percentage point of the exact (Clopper-Pearson) limits, which are conservative.
    assert binom.cdf(40, 400, calibration.fpir_high) == pytest.approx(0.025, abs=0.012)
    assert binom.sf(39, 400, calibration.fpir_low) == pytest.approx(0.025, abs=0.012)


def test_searches_of_one_person_are_correlated():
    """Searches of one person are correlated, so the limits are wider."""
    score_I = np.random.default_rng(2).random(50)
    independent = calibrate_threshold(np.repeat(score_I, 10), np.arange(500), 0.1, **TERMS)
    correlated = calibrate_threshold(np.repeat(score_I, 10), np.repeat(np.arange(50), 10), 0.1, **TERMS)
    assert correlated.threshold == independent.threshold
    assert correlated.fpir_high - correlated.fpir_low > 2 * (independent.fpir_high - independent.fpir_low)


def test_one_person_gives_no_confidence_limits():
    calibration = calibrate_threshold(np.random.default_rng(0).random(100), np.zeros(100), 0.1, **TERMS)
    assert (calibration.fpir_low, calibration.threshold_high) == (None, None)
    assert Calibration.from_dict(calibration.to_dict()) == calibration


@pytest.mark.parametrize(("rate", "message"), [(0.001, "needs 1,000 searches"), (0, "between 0 and 1"), (2, "between")])
def test_rates_that_cannot_be_seen(rate, message):
    with pytest.raises(UserError, match=message):
        calibrate_threshold(np.arange(100.0), np.arange(100), rate, **TERMS)


def test_a_grown_gallery_is_warned_of_when_the_rate_must_have_left_its_limits():
    calibration = calibrate_threshold(np.random.default_rng(0).random(2000), np.arange(2000), 0.01, **TERMS)
    assert calibration.warning(1000) is None
    assert calibration.warning(500) is None
    # The number n of comparisons for which 1 - (1 - 0.01)^n is the upper limit.
    limit = 1000 * np.log1p(-calibration.fpir_high) / np.log1p(-calibration.fpir)
    assert calibration.warning(int(limit)) is None
    assert "1,000 rows and the gallery has" in calibration.warning(int(limit) + 1)
    reach = calibrate_threshold(
        np.random.default_rng(0).random(2000), np.arange(2000), 0.01, **{**TERMS, "by": "reachability"}
    )
    assert reach.warning(10**9) is None


@pytest.fixture
def enrolled(tmp_path, model_spec):
    with Gallery.create(tmp_path / "gallery", model_spec) as gallery:
        gallery.enroll(some_samples(60, 20))
        yield gallery


def strangers(count):
    return np.random.default_rng(8).standard_normal((count, DIMENSION)), [f"stranger {i // 2}" for i in range(count)]


@pytest.mark.parametrize("templates", [False, True])
def test_a_calibrated_gallery_lets_strangers_through_that_often(enrolled, templates):
    probe_PD, identities = strangers(400)
    calibration = enrolled.calibrate(probe_PD, identities, 0.05, templates=templates)
    assert (calibration.compared, calibration.searches, calibration.identities) == (20 if templates else 60, 400, 200)
    result = enrolled.identify(probe_PD, templates=templates)
    assert result.threshold == calibration.threshold
    assert sum(answer.is_known for answer in result.probes) == 20
    assert result.warning is None
    known = enrolled.identify(some_samples(60, 20).embedding_ND, top=1, templates=False, threshold=0.9)
    assert [answer.candidates[0].person for answer in known.probes] == some_samples(60, 20).people
    # The threshold for samples does not apply to templates.
    assert enrolled.calibration(templates=not templates) is None
    with pytest.raises(UserError, match="no threshold for such searches"):
        enrolled.identify(probe_PD, templates=not templates)


def test_candidates_below_the_threshold_are_left_out(enrolled):
    samples = some_samples(60, 20)
    result = enrolled.identify(samples.embedding_ND[:1], top=20, threshold=0.3)
    (answer,) = result.probes
    all_of_them = enrolled.backend.search(samples.embedding_ND[:1], 20).candidates[0]
    assert answer.candidates == [candidate for candidate in all_of_them if candidate.score >= 0.3]
    assert 1 < len(answer.candidates) < 20
    (nobody,) = enrolled.identify(samples.embedding_ND[:1], threshold=1.1).probes
    assert (nobody.is_known, nobody.candidates, nobody.best) == (False, [], all_of_them[0])


def test_searches_of_enrolled_people_are_left_out(enrolled):
    probe_PD, identities = strangers(100)
    samples = some_samples(60, 20)
    both_PD = np.concatenate([samples.embedding_ND, probe_PD])
    calibration = enrolled.calibrate(both_PD, [*samples.people, *identities], 0.1)
    assert calibration == enrolled.calibrate(probe_PD, identities, 0.1)
    with pytest.raises(UserError, match="not enrolled"):
        enrolled.calibrate(samples.embedding_ND, samples.people, 0.1)


def test_growth_is_warned_of(enrolled):
    enrolled.calibrate(*strangers(400), 0.05)
    enrolled.enroll(some_samples(600, 300, seed=5, prefix="more"))
    assert "calibrate again" in enrolled.identify(strangers(3)[0]).warning


def test_a_threshold_of_reachability(enrolled):
    probe_PD, identities = strangers(100)
    reachability_P = np.linspace(0, 1, 100)
    calibration = enrolled.calibrate(probe_PD, identities, 0.1, reachability_P=reachability_P)
    assert calibration.by == "reachability"
    assert reachability_P[89] < calibration.threshold <= reachability_P[90]
    result = enrolled.identify(probe_PD, top=3, reachability_P=reachability_P)
    assert [answer.is_known for answer in result.probes] == [False] * 90 + [True] * 10
    assert len(result.probes[-1].candidates) == 3
    with pytest.raises(UserError, match="which the probes lack"):
        enrolled.identify(probe_PD)


def test_an_empty_gallery_has_no_threshold(tmp_path, model_spec):
    with (
        Gallery.create(tmp_path / "gallery", model_spec) as gallery,
        pytest.raises(UserError, match="the gallery is empty"),
    ):
        gallery.calibrate(*strangers(100), 0.1)


def test_enrolling_continues_part_by_part(tmp_path, model_spec, monkeypatch):
    monkeypatch.setattr("facelt.gallery.gallery.ENROL_ROWS", 7)
    done = []
    with Gallery.create(tmp_path / "gallery", model_spec) as gallery:
        samples = some_samples(20, 4)
        samples = Samples(samples.keys, samples.people, samples.embedding_ND)
        assert gallery.enroll(samples, lambda label, count, total: done.append((count, total))) == 20
        assert done == [(7, 20), (14, 20), (20, 20)]
        assert gallery.count() == (4, 20)


@pytest.mark.parametrize(("rate", "advised"), [(0.01, 3000), (0.1, 300), (0.07, 429)])
def test_the_advised_number_of_searches_is_the_least_that_suffices(rate, advised):
    for count in (advised - 1, advised):
        calibration = calibrate_threshold(np.arange(float(count)), np.arange(count), rate, **TERMS)
        assert calibration.advised_searches == advised
        assert calibration.supported == (count == advised)
